"""The playground end to end: a server, and headless Chromium that can reach no other host."""

import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from PIL import Image, ImageStat

from cli.play.test_play import untrained

pytest.importorskip("bokeh", reason="the extra play is not installed")
pytest.importorskip("lightning", reason="the extra train is not installed")

pytestmark = pytest.mark.slow
PATIENCE = 600
"""Timeout in seconds of all operations, long enough for a loaded machine."""
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
window.source = (name, at = 0) => root(name).renderers[at].data_source
window.spikes = () => source("potential").get_column("spike").filter((value) => !Number.isNaN(value)).length
window.text = (name) => root(name).text
"""


def interruptible():
    """Restores the default handler of SIGINT, which shells ignore for processes in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The URL of a running `hibana play`, which has opened an untrained network."""
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
    """A page in a browser, with methods that run JavaScript in it."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def until(self, code, expected=True):
        """Waits until the JavaScript expression `code` has the value `expected`."""
        deadline = time.monotonic() + PATIENCE
        value = None
        while time.monotonic() < deadline:
            value = self.run(f"return {code}")
            if value == expected:
                return
            time.sleep(0.1)
        raise AssertionError(f"{code} gave {value!r}, not {expected!r}")

    def put(self, name, value):
        """Sets the value of a widget of the neuron, and waits for new data in its figure."""
        self.run("window.before = source('potential').data; put(arguments[0], arguments[1])", name, value)
        self.until("source('potential').data !== window.before")

    def press(self, name):
        """Clicks a button."""
        view = f"Bokeh.index.find_one_by_id(root('{name}').id)"
        self.run(f"{view}.shadow_el.querySelector('button').click()")

    def severe_errors(self):
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
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(PATIENCE)
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    page = Page(browser)
    page.until("!!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)")
    page.run(HELPERS)
    page.until("source('potential').get_column('time').length", 200)
    yield page
    assert page.severe_errors() == []


def test_the_page_sends_requests_only_to_its_server(page, browser, address):
    server = urlsplit(address).netloc
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    hosts = {
        urlsplit(message["params"]["request"]["url"]).netloc
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["request"]["url"].startswith(("http", "ws"))
    }
    assert hosts == {server}


def test_a_changed_value_updates_the_figure_or_shows_an_error(page):
    before = page.run("return spikes()")
    page.run("put('tau', 40)")
    page.until(f"spikes() > {before}")
    page.run("put('threshold', 0.5)")
    page.until("source('potential').get_column('threshold')[0].toFixed(2)", "0.50")
    page.run("put('threshold', -1)")
    page.until("text('error').includes('threshold must be positive and finite')")
    page.run("put('threshold', null)")
    page.until("text('error')", "threshold must be a number")
    page.run("put('threshold', 1)")
    page.until("text('error')", "")
    page.run("put('reset', '<b>1</b>')")
    page.until("text('error').includes('reset must be a number or subtract')")
    page.run("put('reset', 'subtract')")
    page.until("text('error')", "")


def test_every_cell_and_surrogate_can_be_chosen(page):
    assert {"IF", "LIF", "Izhikevich", "LI"} < set(page.run("return root('cell').options"))
    for cell, summary in (
        ("Izhikevich", "Izhikevich"),
        ("LI", "Leaky integrator"),
        ("IF", "Integrate-and-fire"),
    ):
        page.put("cell", cell)
        page.until(f"text('summary').startsWith('{summary}')")
    page.put("surrogate", "Triangle")
    page.put("width", 0.5)
    window = "source('surrogate figure', 1).get_column('derivative').filter((value) => value > 0).length"
    page.until(f"Math.abs({window} - 200) < 3")  # of 401 points over 2, those nearer than 0.5


def test_pasted_code_runs_and_its_errors_are_shown(page):
    page.run("put('cell', 'your own…')")
    page.until("!!root('rise')")
    for code, message in {
        "x = 1\ny = <b>z</b>": "line 2: SyntaxError: invalid syntax",
        "x = 1\n\n1 / 0": "line 3: ZeroDivisionError: division by zero",
    }.items():
        page.run("put('code', arguments[0])", code)
        page.press("use")
        page.until(f"text('error').includes({json.dumps(message)})")
    page.run("put('cell', 'IF')")
    page.until("text('error')", "")


def test_a_network_is_opened_and_its_samples_go_through_it(page):
    page.run("root('tabs').active = 1")
    page.until("root('layers').children.length", 2)
    titles = "root('layers').children.map((figure) => figure.title.text.split(':')[0])"
    assert page.run(f"return {titles}") == ["if1", "if2"]
    page.run("put('sample', 7)")
    page.until("root('input').title.text.startsWith('Input: ')")
    page.press("mistake")
    page.until("root('readout').title.text.includes(', label ')")
    page.until("text('network error')", "")
    page.run("root('play').active = true")
    now = "root('readout').renderers[1].data_source.get_column('x')[0]"
    page.until(now, 1)
    page.until(now, 4)
    page.run("put('checkpoint', '/nowhere/at all')")
    page.press("open")
    page.until("text('network error').includes('checkpoint must be a file that `hibana train` wrote')")


def lightness(page):
    """The mean lightness of a screenshot of the page, from 0 to 1."""
    picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png()))
    return ImageStat.Stat(picture.convert("L")).mean[0] / 255


def test_the_page_is_as_light_as_the_system(page, browser):
    try:
        for scheme in ("dark", "light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            page.until("Bokeh.documents[0].is_idle")
            assert (lightness(page) > 0.5) == (scheme == "light")
        browser.refresh()  # opens the page in dark mode
        page.until("!!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)")
        assert lightness(page) < 0.5
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("tab", [0, 1])
def test_nothing_is_wider_than_the_window(page, browser, width, tab):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.run(f"root('tabs').active = {tab}")
        if tab:
            page.until("root('layers').children.length", 2)
        page.until("Bokeh.documents[0].is_idle")
        page.until(f"document.documentElement.scrollWidth <= {width} && innerWidth == {width}")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def get(address, path=None, **headers):
    url = urlsplit(address)
    with closing(http.client.HTTPConnection(url.hostname, url.port, timeout=PATIENCE)) as connection:
        connection.request(
            "GET", url.path + path[1:] if path and path[0] == "~" else path or url.path, headers=headers
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
def test_the_page_is_served_only_at_its_address(address, path, headers, status):
    assert get(address, path, **headers) == status


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Bokeh leaves a socket open
@pytest.mark.parametrize("port", ["70000", "-1", "taken"])
def test_unavailable_ports_are_refused(port, address, capsys):
    from hibana.cli import main

    message = "port must be in 0 to 65535"
    if port == "taken":
        port, message = str(urlsplit(address).port), "port must be one that can be listened on"
    assert main(["play", "--no-browser", "--port", port]) == 2
    assert message in capsys.readouterr().err
