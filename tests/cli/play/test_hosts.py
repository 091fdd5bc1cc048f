"""Who may reach the playground: requests whose ``Host`` header is a name of this machine."""

import http.client
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

pytest.importorskip("bokeh", reason="the extra play is not installed")


@pytest.fixture(scope="module")
def address():
    """The address of a playground without a network."""
    command = [sys.executable, "-m", "hibana", "play", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield urlsplit(server.stdout.readline().strip())
        server.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("attacker.example:{port}", 403),
        ("127.0.0.1.attacker.example", 403),
        ("localhost.", 403),
        ("192.168.0.1", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["", "/ws", "/static"])
def test_only_requests_for_this_machine_are_served(address, host, status, path):
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.putrequest(
        "GET", "/static/js/bokeh.min.js" if path == "/static" else address.path + path, skip_host=True
    )
    connection.putheader("Host", host.format(port=address.port))
    connection.endheaders()
    expected = 400 if status == 200 and path == "/ws" else status  # not a handshake
    assert connection.getresponse().status == expected
    connection.close()
