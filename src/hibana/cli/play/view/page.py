"""A page: the two views in their frame, and the light that they are seen in."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

from bokeh.core.templates import get_env
from bokeh.core.validation import silence
from bokeh.core.validation.warnings import EMPTY_LAYOUT
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import CustomJS, Div, Toggle

from hibana.cli.play.pump import Pump
from hibana.cli.play.view.look import WIDGET, Look
from hibana.cli.play.view.network import NetworkView
from hibana.cli.play.view.neuron import NeuronView
from hibana.cli.play.worker import Worker

__all__ = ["page"]

LIGHT = """
const wanted = matchMedia("(prefers-color-scheme: dark)")
dark.active = wanted.matches
wanted.addEventListener("change", (event) => { dark.active = event.matches })
"""
silence(EMPTY_LAYOUT)  # controls and rasters come when it is known what they are of
THEMES = ("Dark theme", "Light theme")
"""What the button goes to: in light, in dark."""
PAINT = """
document.documentElement.classList.toggle("dark", cb_obj.active)
cb_obj.label = themes[Number(cb_obj.active)]
"""
PLAIN = """
.bk-btn.bk-active { color: var(--text); background: var(--field); border-color: var(--edge); }
.bk-btn { padding: 6px; }
"""
"""Of the button: its words change, so it never looks pressed."""


def page(
    document: Document, worker: Worker, threads: ThreadPoolExecutor, checkpoint: str | None, trust: list[str]
) -> None:
    """Fills a document, which belongs to one browser tab; `checkpoint` is opened at once if there is one.

    Checkpoints that are opened in it may have the functions in `trust` run, and no others.
    """
    document.title = "hibana play"
    document.template = get_env().from_string(
        files("hibana.cli.play.view").joinpath("page.html").read_text(encoding="utf-8")
    )
    document.template_variables["view"] = "network" if checkpoint else "neuron"
    waiting = Div(
        text="computing…",
        visible=False,
        name="waiting",
        css_classes=["faint"],
        margin=0,
        stylesheets=[WIDGET],
    )
    dark = Toggle(label=THEMES[0], name="dark", margin=0, width=94, stylesheets=[WIDGET, PLAIN])
    look = Look()
    dark.on_change("active", lambda attribute, old, new: look.paint(new))
    dark.js_on_change("active", CustomJS(args={"themes": THEMES}, code=PAINT))
    document.js_on_event(DocumentReady, CustomJS(args={"dark": dark}, code=LIGHT))

    def later(function: Callable[[], None]) -> None:
        session = document.session_context
        if session is not None and not session.destroyed:  # else the tab is gone, and nobody waits
            document.add_next_tick_callback(function)

    pump = Pump(worker, threads, later, lambda slow: setattr(waiting, "visible", slow))
    neuron = NeuronView(document, look, pump)
    network = NetworkView(document, look, pump, checkpoint, trust)
    for root in (waiting, dark, neuron.controls, *neuron.figures):
        document.add_root(root)
    for root in (network.controls, network.layers, *network.side):
        document.add_root(root)
