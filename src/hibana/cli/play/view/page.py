"""A page: the two views in their frame."""

from importlib.resources import files

from bokeh.core.templates import get_env
from bokeh.core.validation import silence
from bokeh.core.validation.warnings import EMPTY_LAYOUT
from bokeh.document import Document

from hibana.cli.play.view.network import NetworkView
from hibana.cli.play.view.neuron import NeuronView

__all__ = ["page"]

silence(EMPTY_LAYOUT)  # controls and rasters are added later


def page(document: Document, checkpoint: str | None, trust: list[str]) -> None:
    """Fill the document of one browser tab, and open `checkpoint` if it is not ``None``.

    Checkpoints may execute the functions in `trust`, and no others.
    """
    document.title = "hibana play"
    document.template = get_env().from_string(
        files("hibana.cli.play.view").joinpath("page.html").read_text(encoding="utf-8")
    )
    document.template_variables["view"] = "network" if checkpoint else "neuron"
    neuron, network = NeuronView(document), NetworkView(checkpoint, trust)
    for root in (neuron.controls, *neuron.figures, network.controls, network.layers, *network.figures):
        document.add_root(root)
