"""The playground end to end: a server, and headless Chromium in front of it without any other network."""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from cli.play.test_play import untrained

pytest.importorskip("bokeh", reason="the extra play is not installed")
pytest.importorskip("lightning", reason="the extra train is not installed")

pytestmark = pytest.mark.slow
PATIENCE = 600
"""Seconds for what a loaded machine may take; nothing here says how long anything should."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)
HELPERS = """
window.root = (name) => [...Bokeh.index.query((view) => view.model.name === name)].at(-1)?.model
window.put = (name, value) => { root(name).value = value }
window.drawn = (name, at = 0) => root(name).renderers[at].data_source
window.spikes = () => drawn("potential").get_column("spike").filter((each) => !Number.isNaN(each)).length
window.told = (name) => root(name).text
"""


def interruptible():
    """Lets SIGINT through where a shell that runs the tests in the background had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where `hibana play` answers, with a network that nobody trained opened."""
    checkpoint = untrained(tmp_path_factory.mktemp("page") / "checkpoint.ckpt")
    command = [sys.executable, "-m", "hibana", "play", str(checkpoint), "--no-browser"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    ) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGINT)
            try:
                _, errors = server.communicate(timeout=PATIENCE)
            finally:
                server.kill()
            assert server.returncode == 130
            assert "Traceback" not in errors, errors


class Page:
    """A page in a browser, and what one reads off it."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def until(self, code, wanted=True):
        """Waits for `code` to give `wanted`."""
        ended = time.monotonic() + PATIENCE
        seen = None
        while time.monotonic() < ended:
            seen = self.run(f"return {code}")
            if seen == wanted:
                return
            time.sleep(0.1)
        raise AssertionError(f"{code} gave {seen!r}, not {wanted!r}")

    def put(self, name, value):
        """Sets the value of a widget of the neuron, and waits for the answer."""
        self.run("window.before = drawn('potential').data; put(arguments[0], arguments[1])", name, value)
        self.until("drawn('potential').data !== window.before")

    def press(self, name):
        """Clicks a button."""
        view = f"Bokeh.index.find_one_by_id(root('{name}').id)"
        self.run(f"{view}.shadow_el.querySelector('button').click()")

    def severe(self):
        return [line for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_script_timeout(PATIENCE)
    yield opened
    opened.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    page = Page(browser)
    page.until("!!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)")
    page.run(HELPERS)
    page.until("drawn('potential').get_column('time').length", 200)
    yield page
    assert page.severe() == []


def test_nothing_is_asked_of_any_other_machine(page, browser, address):
    here = urlsplit(address).netloc
    asked = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    places = {
        urlsplit(each["params"]["request"]["url"]).netloc
        for each in asked
        if each["method"] == "Network.requestWillBeSent"
        and each["params"]["request"]["url"].startswith(("http", "ws"))
    }
    assert places == {here}


def test_a_changed_number_is_answered(page):
    before = page.run("return spikes()")
    page.run("put('tau', 40)")
    page.until(f"spikes() > {before}")
    page.run("put('threshold', 0.5)")
    page.until("drawn('potential').get_column('threshold')[0].toFixed(2)", "0.50")
    page.run("put('threshold', -1)")
    page.until("told('error').includes('threshold must be positive and finite')")
    page.run("put('threshold', null)")
    page.until("told('error')", "threshold must be a number")
    page.run("put('threshold', 1)")
    page.until("told('error')", "")
    page.run("put('reset', '<b>1</b>')")
    page.until("told('error').includes('reset must be a number or subtract')")
    page.run("put('reset', 'subtract')")
    page.until("told('error')", "")


def test_every_cell_and_surrogate_can_be_chosen(page):
    assert {"IF", "LIF", "Izhikevich", "LI"} < set(page.run("return root('cell').options"))
    for cell, summary in (
        ("Izhikevich", "Izhikevich"),
        ("LI", "Leaky integrator"),
        ("IF", "Integrate-and-fire"),
    ):
        page.put("cell", cell)
        page.until(f"told('summary').startsWith('{summary}')")
    page.put("surrogate", "Triangle")
    page.put("width", 0.5)
    window = "drawn('surrogate figure', 1).get_column('derivative').filter((each) => each > 0).length"
    page.until(f"Math.abs({window} - 200) < 3")  # of 401 points over 2, those nearer than 0.5


def test_pasted_code_runs_and_its_errors_are_told(page):
    page.run("put('cell', 'your own…')")
    page.until("!!root('rise')")
    for code, words in {
        "x = 1\ny = <b>z</b>": "line 2: SyntaxError: invalid syntax",
        "x = 1\n\n1 / 0": "line 3: ZeroDivisionError: division by zero",
    }.items():
        page.run("put('code', arguments[0])", code)
        page.press("use")
        page.until(f"told('error').includes({json.dumps(words)})")
    page.run("put('cell', 'IF')")
    page.until("told('error')", "")


def test_a_network_is_opened_and_its_samples_go_through_it(page):
    page.run("root('tabs').active = 1")
    page.until("root('layers').children.length", 2)
    titles = "root('layers').children.map((each) => each.title.text.split(':')[0])"
    assert page.run(f"return {titles}") == ["if1", "if2"]
    page.run("put('sample', 7)")
    page.until("root('input').title.text.startsWith('Input: ')")
    page.press("mistake")
    page.until("root('readout').title.text.includes(', label ')")
    page.until("told('network error')", "")
    page.run("root('play').active = true")
    now = "root('readout').renderers[1].data_source.get_column('x')[0]"
    page.until(now, 1)
    page.until(now, 4)
    page.run("put('checkpoint', '/nowhere/at all')")
    page.press("open")
    page.until("told('network error').includes('checkpoint must be a file that `hibana train` wrote')")


def get(address, path=None, **headers):
    place = urlsplit(address)
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE)) as connection:
        connection.request(
            "GET", place.path + path[1:] if path and path[0] == "~" else path or place.path, headers=headers
        )
        with connection.getresponse() as response:
            return response.status


UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
KEY = {**UPGRADE, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (None, {}, 200),
        ("/", {}, 404),
        ("/wrong", {}, 404),
        ("/autoload.js?bokeh-autoload-element=x", {}, 404),
        ("/metadata", {}, 404),
        ("/static/js/bokeh.min.js", {}, 200),
        ("/ws", KEY, 404),
        ("/wrong/ws", KEY, 404),
        ("~/ws", {**KEY, "Origin": "http://evil.example"}, 403),
    ],
)
def test_the_page_is_given_only_at_its_address(address, path, headers, status):
    assert get(address, path, **headers) == status


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Bokeh leaves a socket open
@pytest.mark.parametrize("port", ["70000", "-1", "taken"])
def test_a_port_that_cannot_be_listened_on_is_refused(port, address, capsys):
    from hibana.cli import main

    words = "port must be in 0 to 65535"
    if port == "taken":
        port, words = str(urlsplit(address).port), "port must be one that can be listened on"
    assert main(["play", "--no-browser", "--port", port]) == 2
    assert words in capsys.readouterr().err
