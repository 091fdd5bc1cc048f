"""Who may ask the playground: this machine, by this address, with this run's token.

The page runs code that is typed into it, so nobody else may reach it. The socket is bound to 127.0.0.1. A
request whose ``Host`` is another name (a page elsewhere whose name was pointed here) or whose ``Origin`` is
another page is refused before anything is done. The page itself is given only to who knows the token in the
address that was printed, which other users of this machine don't; it holds a signed token of its own, without
which no websocket is opened. All scripts and styles come from this machine.
"""

import gc
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.resources import Resources
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.static_handler import StaticHandler
from bokeh.server.views.ws import WSHandler
from bokeh.util.token import check_token_signature, get_token_payload
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import ErrorHandler

from hibana.cli.play.view import page
from hibana.cli.play.worker import Worker

__all__ = ["serve"]

ADDRESS = "127.0.0.1"


class _Prompt(WSHandler):  # type: ignore[misc] # Bokeh is Any to mypy, see pyproject.toml
    """The websocket, whose small messages don't wait for the receipt of those before: up to 40 ms."""

    def open(self) -> None:
        super().open()
        self.set_nodelay(True)


class _Guarded(BokehTornado):  # type: ignore[misc] # Bokeh is Any to mypy, see pyproject.toml
    """Bokeh's application behind the door that this module describes."""

    def __init__(self, application: Application, port: int, token: str) -> None:
        hosts = [f"{name}:{port}" for name in (ADDRESS, "localhost")]
        super().__init__(
            application,
            extra_websocket_origins=hosts,
            secret_key=secrets.token_bytes(32),
            sign_sessions=True,
            include_headers=[],
            include_cookies=[],
            websocket_max_message_size_bytes=1 << 20,
        )
        self._hosts, self._token = hosts, token

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if self._refuses(request):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return super().find_handler(request, **kwargs)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[Any], *args: Any, **kwargs: Any
    ) -> Any:
        chosen = _Prompt if target_class is WSHandler else target_class
        return super().get_handler_delegate(request, chosen, *args, **kwargs)

    def _refuses(self, request: HTTPServerRequest) -> bool:
        if request.headers.get("Host", "").lower() not in self._hosts:
            return True
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in [f"http://{host}" for host in self._hosts]:
            return True
        if request.path == "/ws":
            return not self._is_signed(request.headers.get("Sec-WebSocket-Protocol", ""))
        if request.path.startswith("/static/") or request.path == "/favicon.ico":
            return "%00" in request.path  # of which Tornado would ask the file system
        given = parse_qs(request.query).get("token", [""])[-1]
        return not secrets.compare_digest(given.encode(), self._token.encode())

    def _is_signed(self, protocols: str) -> bool:
        """Whether the protocols of a websocket are Bokeh's, with a token of this server that has not expired.

        Bokeh would open the websocket, and raise.
        """
        name, _, token = (part.strip() for part in protocols.partition(","))
        try:
            signed = check_token_signature(token, signed=True, secret_key=self.secret_key)
            return name == "bokeh" and signed and time.time() < get_token_payload(token)["session_expiry"]
        except Exception:  # a stranger's text, of which decoding it may make any error
            return False

    def resources(self, absolute_url: str | bool | None = None) -> Resources:
        """Scripts from this server, whatever the environment says of Bokeh's."""
        return Resources(mode="server", root_url="/", path_versioner=StaticHandler.append_version)


def serve(
    checkpoint: str | None, port: int, ready: Callable[[str], None], *, trust: Collection[str] = ()
) -> None:
    """Serves the playground until it is interrupted.

    Args:
        checkpoint: to open at the start.
        port: to listen on; 0 takes a free one.
        ready: told the address, as soon as it answers.
        trust: functions that checkpoints may name as their layers, ``module:function``. They will be run.

    Raises:
        KeyboardInterrupt: when it was interrupted, and all that it started has ended.
        ValueError: if the port can't be listened on.
    """
    for name in ("access", "general"):  # each refusal would be a line
        logging.getLogger(f"tornado.{name}").setLevel(logging.ERROR)
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be in 0 to 65535, got {port}")
    try:
        listening = socket.create_server((ADDRESS, port), reuse_port=False)
    except OSError as error:
        raise ValueError(f"port must be one that can be listened on, got {port}: {error}") from error
    listening.setblocking(False)
    number = listening.getsockname()[1]
    token = secrets.token_urlsafe(16)
    worker = Worker()
    threads = ThreadPoolExecutor(1)

    def fill(doc: Document) -> None:
        page(doc, worker, threads, checkpoint, list(trust))

    application = _Guarded(Application(FunctionHandler(fill)), number, token)
    http = HTTPServer(application)
    http.add_socket(listening)
    loop = IOLoop.current()
    server = BaseServer(loop, application, http)
    server.start()
    threads.submit(worker.start)
    gc.freeze()  # all that is loaded stays: gone through while a slider waits, it costs 30 ms
    loop.add_callback(ready, f"http://{ADDRESS}:{number}/?token={token}")
    with _stopping(loop) as interrupted:
        try:
            loop.start()
        finally:
            server.stop(wait=False)
            threads.shutdown(wait=False, cancel_futures=True)
            worker.close()
    if interrupted:
        raise KeyboardInterrupt


@contextmanager
def _stopping(loop: IOLoop) -> Iterator[list[int]]:
    """Within it Ctrl-C stops `loop` instead of raising wherever it strikes, in a callback or in cleaning up.

    Yields a list that is empty until then. Where Ctrl-C is ignored or handled by somebody else, it stays so.
    """
    interrupted: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        interrupted.append(number)
        loop.add_callback_from_signal(loop.stop)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
