"""Bokeh's server, on this machine alone.

The page executes code that is typed into it. The socket is bound to 127.0.0.1, and the page and its websocket
lie below a path with a random token, which other users of the machine and pages elsewhere don't know. Bokeh
refuses websockets of other origins. Scripts and styles come from this machine.
"""

import logging
import secrets
from collections.abc import Callable, Collection

import torch
from bokeh.document import Document
from bokeh.models import TabPanel, Tabs
from bokeh.server.server import Server
from jinja2 import Template

from hibana.cli.play.network_view import NetworkView
from hibana.cli.play.neuron_view import NeuronView

__all__ = ["serve"]

ADDRESS = "127.0.0.1"
PAGE = Template(
    "{% extends base %}{% block postamble %}<style>@media (prefers-color-scheme: dark) "
    "{html {background: #111; filter: invert(0.9) hue-rotate(180deg)} body {background: white}}"
    "</style>{% endblock %}"
)
"""Bokeh's page, with inverted lightness where the system is dark."""


def serve(
    checkpoint: str | None, port: int, ready: Callable[[str], None], *, trust: Collection[str] = ()
) -> None:
    """Serve the playground until it is interrupted.

    Args:
        checkpoint: to open at the start.
        port: to listen on; 0 takes a free one.
        ready: called with the address when it answers.
        trust: functions that checkpoints may name as their layers, ``module:function``; they are executed.

    Raises:
        ValueError: if the port can't be listened on.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be in 0 to 65535, got {port}")

    def fill(document: Document) -> None:
        views = {
            "One neuron": NeuronView(document).layout,
            "A trained network": NetworkView(checkpoint, list(trust)).layout,
        }
        document.title, document.template = "hibana play", PAGE
        tabs = [TabPanel(child=layout, title=title) for title, layout in views.items()]
        active = 1 if checkpoint else 0
        document.add_root(Tabs(tabs=tabs, active=active, name="tabs", sizing_mode="stretch_width"))

    for name in ("tornado.access", "bokeh"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # one neuron is too little work for several
    token = secrets.token_urlsafe(16)
    options = {"use_index": False, "redirect_root": False, "include_headers": [], "include_cookies": []}
    try:
        server = Server({f"/{token}": fill}, address=ADDRESS, port=port, **options)
    except OSError as error:
        raise ValueError(f"port must be one that can be listened on, got {port}: {error}") from error
    server.start()
    server.io_loop.add_callback(ready, f"http://{ADDRESS}:{server.port}/{token}")
    try:
        server.io_loop.start()
    finally:
        server.stop(wait=False)
