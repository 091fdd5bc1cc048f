"""The server of the playground, which only this machine can reach.

The page executes code that the user types. The socket is therefore bound to 127.0.0.1, and the address of
page and websocket contains a random token, which other users of the machine and other web pages don't know.
Bokeh rejects websockets of other origins. Requests for other hosts than this machine are refused: a web page
whose name was redirected to 127.0.0.1 (DNS rebinding) still names its own host. Scripts and styles come from
this machine.
"""

import logging
import secrets
from collections.abc import Callable, Collection
from typing import Any

import torch
from bokeh.document import Document
from bokeh.models import TabPanel, Tabs
from bokeh.server.server import Server
from bokeh.themes import Theme
from jinja2 import Template
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import ErrorHandler

from hibana.cli.play.network_view import NetworkView
from hibana.cli.play.neuron_view import NeuronView

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost", "[::1]")
"""Names of this machine that a request may have in its ``Host`` header."""
PAGE = Template(
    '{% extends base %}{% block postamble %}<meta name="viewport" content="width=device-width">'
    "<style>@media (prefers-color-scheme: dark) {html {background: #1a1a1a}}</style>{% endblock %}"
)
"""Bokeh's page, on the inverse of white in dark mode."""
DARK = "@media (prefers-color-scheme: dark) {%s {filter: invert(0.9) hue-rotate(180deg)}}"
"""Style that inverts the lightness of what a selector selects, and keeps its hue, in dark mode."""
THEME = Theme(json={"attrs": {name: {"stylesheets": [DARK % ":host"]} for name in ("Plot", "Widget")}})
"""Inverts each figure and widget; a figure of data has a style of its own, and so keeps its colours."""


class _ForeignHost(Matcher):
    """Matches requests for hosts that are not this machine."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Returns the arguments of the handler, which are none, or ``None`` for a request that is served."""
        return None if request.host_name in HOSTS else {}


def serve(
    checkpoint: str | None, port: int, ready: Callable[[str], None], *, trust: Collection[str] = ()
) -> None:
    """Serves the playground until the user interrupts it.

    Args:
        checkpoint: a network to open at the start; ``None`` opens none.
        port: port to listen on; 0 uses a free one.
        ready: called with the page's address once the server accepts connections.
        trust: functions ``module:function`` that checkpoints may name as their layers. They are executed.

    Raises:
        ValueError: if the port is not available.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be in 0 to 65535, got {port}")

    def fill(document: Document) -> None:
        """Adds the two tabs to a new page."""
        views = {
            "One neuron": NeuronView(document).layout,
            "A trained network": NetworkView(checkpoint, list(trust)).layout,
        }
        document.title, document.template, document.theme = "hibana play", PAGE, THEME
        tabs = [TabPanel(child=layout, title=title) for title, layout in views.items()]
        active = 1 if checkpoint else 0
        style = {"sizing_mode": "stretch_width", "stylesheets": [DARK % ".bk-header"]}
        document.add_root(Tabs(tabs=tabs, active=active, name="tabs", **style))

    for name in ("tornado.access", "bokeh"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # one neuron is too little work for several threads
    token = secrets.token_urlsafe(16)
    options = {"use_index": False, "redirect_root": False, "include_headers": [], "include_cookies": []}
    try:
        server = Server({f"/{token}": fill}, address=ADDRESS, port=port, **options)
    except OSError as error:
        raise ValueError(f"port must be one that can be listened on, got {port}: {error}") from error
    # Bokeh has no option for this; its application is public in tornado, and private in its server
    server._tornado.default_router.rules.insert(0, Rule(_ForeignHost(), ErrorHandler, {"status_code": 403}))
    server.start()
    server.io_loop.add_callback(ready, f"http://{ADDRESS}:{server.port}/{token}")
    try:
        server.io_loop.start()
    finally:
        server.stop(wait=False)
