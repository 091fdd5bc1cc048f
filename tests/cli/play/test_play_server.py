"""Who may reach the playground: only this machine, and only with the token in the address."""

import http.client
import re
import socket
import threading
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import torch

pytest.importorskip("bokeh", reason="the extra play is not installed")

from bokeh.util.token import generate_jwt_token, generate_session_id
from tornado.ioloop import IOLoop

from hibana.cli.play.server import ADDRESS, serve

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
OPENED = 101
"""The status of an opened websocket."""


class RunningServer:
    """A playground in a thread: its URL, and a method that stops it."""

    def __init__(self):
        self.is_ready = threading.Event()
        self._threads = torch.get_num_threads()  # serve changes it
        self._thread = threading.Thread(target=serve, args=(None, 0, self._ready))
        self._thread.start()
        assert self.is_ready.wait(60)

    def _ready(self, url):
        self.url, self._loop = url, IOLoop.current()
        self.is_ready.set()

    def stop(self):
        self._loop.add_callback(self._loop.stop)
        self._thread.join()
        torch.set_num_threads(self._threads)


@pytest.fixture(scope="module")
def url():
    server = RunningServer()
    yield urlsplit(server.url)
    server.stop()


def status(url, path, headers=()):
    """The status of the answer to a request for `path`."""
    with closing(http.client.HTTPConnection(ADDRESS, url.port, timeout=60)) as connection:
        connection.request("GET", path, headers=dict(headers))
        with connection.getresponse() as response:
            return response.status


def test_the_address_contains_a_new_random_token(url):
    other = RunningServer()
    other.stop()
    for path in (url.path, urlsplit(other.url).path):
        assert re.fullmatch(r"/[\w-]{22}", path)  # 128 bits
    assert url.path != urlsplit(other.url).path


def test_the_owner_of_the_token_gets_page_and_websocket(url):
    assert status(url, url.path) == 200
    assert status(url, f"{url.path}/ws", UPGRADE) == OPENED
    assert status(url, f"{url.path}/ws", {**UPGRADE, "Origin": f"http://{url.netloc}"}) == OPENED


FORGED = {
    "none": lambda token: "",
    "wrong": lambda token: "wrong",
    "cut": lambda token: token[:-1],
    "longer": lambda token: f"{token}x",
    "another case": str.swapcase,
    "a zero byte": lambda token: f"{token}%00",
    "a parent folder": lambda token: f"../{token}",
    "a query": lambda token: f"?token={token}",
    "a folder of static files": lambda token: f"static/{token}",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("end", ["", "/ws", "/metadata", "/autoload.js?bokeh-autoload-element=x"])
def test_a_forged_token_is_refused(url, forge, end):
    path = f"/{forge(url.path[1:])}".rstrip("/") + end or "/"
    assert status(url, path, UPGRADE if end == "/ws" else ()) == 404


@pytest.mark.parametrize("key", [None, b"a key of the attacker"])
def test_a_session_token_of_bokeh_does_not_replace_the_token(url, key):
    signing = {"secret_key": key, "signed": key is not None}
    session = generate_jwt_token(generate_session_id(**signing), **signing)
    assert status(url, "/ws", {**UPGRADE, "Sec-WebSocket-Protocol": f"bokeh, {session}"}) == 404


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://{host}.evil.example", "http://127.0.0.1:1"],
)
def test_a_websocket_of_another_origin_is_refused_in_spite_of_the_token(url, origin):
    headers = {**UPGRADE, "Origin": origin.format(host=url.netloc)}
    assert status(url, f"{url.path}/ws", headers) == 403


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/static/..%2f..%2fserver/server.py", "/static//etc/passwd"]
)
def test_only_bokehs_scripts_and_styles_need_no_token(url, path):
    assert status(url, "/static/js/bokeh.min.js") == 200
    assert status(url, path) in (403, 404)


def test_other_addresses_of_this_machine_are_not_served(url):
    names = {"127.0.0.2", "::1", socket.gethostname()}
    infos = [info for name in names for info in socket.getaddrinfo(name, url.port, type=socket.SOCK_STREAM)]
    others = {(family, address) for family, *_, address in infos if address[0] != ADDRESS}
    for family, address in others:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            assert connection.connect_ex(address) != 0, address
