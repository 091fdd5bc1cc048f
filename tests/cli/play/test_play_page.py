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
NONSENSE = (
    "",
    "abc",
    "nan",
    "-1",
    "0",
    "inf",
    "-1e999",
    "1e300",
    "9" * 400,
    "💥",
    "1;2",
    "<b>1</b>",
    "None",
    "\\",
)

HELPERS = """
window.deep = (selector, from = document) => {
  const found = [...from.querySelectorAll(selector)]
  for (const each of from.querySelectorAll("*")) {
    if (each.shadowRoot) found.push(...deep(selector, each.shadowRoot))
  }
  return found
}
window.inner = (name, tag) => {
  for (const each of deep("." + name)) {
    const found = each.shadowRoot && each.shadowRoot.querySelector(tag)
    if (found) return found
  }
}
window.put = (name, value, tag = "input") => {
  const field = inner(name, tag)
  field.value = value
  for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {bubbles: true}))
}
window.root = (name) => Bokeh.documents[0].get_model_by_name(name)
window.drawn = (root, at = 0) => root.renderers[at].data_source
window.fields = () => {
  const named = deep("[class*=text-]").map((each) => [...each.classList].find((c) => c.startsWith("text-")))
  return named.filter((name) => inner(name, "input"))
}
window.spikes = () => {
  const column = drawn(root("neuron_potential")).get_column("spike")
  return column.filter((each) => !Number.isNaN(each)).length
}
window.told = (name) => {
  const box = deep("." + name)[0]
  const seen = box && getComputedStyle(box).display != "none"
  return seen ? box.shadowRoot.querySelector(".bk-clearfix").textContent : ""
}
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

    def settled(self):
        """Waits until nothing was painted for half a second, of the browser's own time."""
        self.driver.execute_async_script(
            """
            const done = arguments[0]
            const views = Bokeh.index.query((view) => "repainted" in view)
            let last = performance.now()
            const painted = () => { last = performance.now() }
            for (const view of views) view.repainted.connect(painted)
            const look = () => {
              if (performance.now() - last < 500) return setTimeout(look, 50)
              for (const view of views) view.repainted.disconnect(painted)
              done()
            }
            look()
            """
        )

    def answered(self, code):
        """Does `code`, and waits for what the neuron then answers."""
        self.run("window.before = drawn(root('neuron_potential')).data; " + code)
        self.until("drawn(root('neuron_potential')).data !== window.before")

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
    page.until("drawn(root('neuron_curve')).get_column('rate').length > 0")
    page.run("show('neuron')")
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


def test_a_dragged_slider_and_a_typed_number_are_answered(page):
    before = page.run("return spikes()")
    page.run("put('text-tau', '20')")
    page.until(f"spikes() > {before}")
    assert page.run("return inner('slider-tau', '.noUi-handle').getAttribute('aria-valuetext')") == "20.00"
    handle = page.run("return inner('slider-threshold', '.noUi-handle')")
    page.run("arguments[0].focus()", handle)
    handle.send_keys("\ue012")  # arrow left: one step of the slider
    page.until("Number(inner('text-threshold', 'input').value)", 0.99)
    page.until("drawn(root('neuron_potential')).get_column('threshold')[0].toFixed(2)", "0.99")


def test_every_cell_and_surrogate_can_be_chosen(page):
    cells = page.run("return [...inner('select-cell', 'select').options].map((o) => o.value)")
    assert {"IF", "LIF", "Izhikevich", "LI"} < set(cells)
    for cell in ("IF", "Izhikevich", "LI", "LIF"):
        page.answered(f"put('select-cell', '{cell}', 'select')")
    page.answered("put('select-surrogate', 'Triangle', 'select')")
    page.until("!!inner('text-width', 'input')")
    page.run("put('text-width', '0.5')")
    window = "drawn(root('neuron_step'), 1).get_column('derivative').filter((each) => each > 0).length"
    page.until(f"Math.abs({window} - 100) < 2")  # of 401 points over 4, those nearer than 0.5


def test_nonsense_in_every_field_is_told_and_changes_nothing(page):
    page.answered("put('select-surrogate', 'ATan', 'select')")
    fields = page.run("return fields()")
    assert {"text-tau", "text-threshold", "text-alpha", "text-reset", "text-input-noise"} <= set(fields)
    before = page.run("return spikes()")
    for field in fields:
        was = page.run("return inner(arguments[0], 'input').value", field)
        for nonsense in NONSENSE:
            page.run("put(arguments[0], arguments[1])", field, nonsense)
        page.run("put(arguments[0], 'spam')", field)
        page.until("told('trouble').includes(' must be a number')")
        page.until(f"deep('.{field}')[0].classList.contains('wrong')")
        page.run(f"put('{field}', '{was}')")
        page.until("told('trouble')", "")
        page.until("spikes()", before)


def test_pasted_code_runs_and_its_errors_are_told(page):
    page.run("put('select-cell', 'your own…', 'select')")
    page.until("deep('.text-rise').length > 0")
    page.until("!!inner('code', 'textarea')")
    page.answered("put('text-rise', '0.5')")
    for code, words in {
        "x = 1\ny = <b>z</b>": "line 2: SyntaxError: invalid syntax",
        "x = 1\n\n1 / 0": "line 3: ZeroDivisionError: division by zero",
    }.items():
        page.run("put('code', arguments[0], 'textarea'); inner('use', 'button').click()", code)
        page.until(f"told('trouble').includes({json.dumps(words)})")
    page.answered("put('select-cell', 'IF', 'select')")
    page.until("told('trouble')", "")


def test_a_network_is_opened_and_its_samples_go_through_it(page):
    page.run("show('network')")
    page.until("root('network_layers').children.length", 2)
    titles = "root('network_layers').children.map((each) => each.title.text.split(':')[0])"
    assert page.run(f"return {titles}") == ["if1", "if2"]
    page.run("put('sample', '7')")
    page.until("root('network_input').title.text.startsWith('Input: ')")
    for nonsense in (*NONSENSE[:3], "-1", "360", "1.5", "💥"):
        page.run("put('sample', arguments[0])", nonsense)
        page.until("told('network-trouble').includes('number must be in 0 to 359')")
    page.run("inner('mistake', 'button').click()")
    page.until("root('network_readout').title.text.includes(', label ')")
    page.until("told('network-trouble')", "")
    page.run("inner('play', 'button').click()")
    page.until("root('network_layers').children[0].center.some((each) => each.left == 0.5)")
    page.until("root('network_layers').children[0].center.some((each) => each.left == 4.5)")
    page.run("put('path', '/nowhere/at all'); inner('open', 'button').click()")
    page.until("told('network-trouble').includes('checkpoint must be a file that `hibana train` wrote')")


def test_the_page_is_as_light_as_the_system_is(page, browser):
    ground = "getComputedStyle(document.querySelector('aside')).backgroundColor"
    try:
        for scheme, colour in (("dark", "rgb(23, 27, 33)"), ("light", "rgb(255, 255, 255)")):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            page.until(ground, colour)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


BOXES = """
const seen = [...document.querySelectorAll("main:not([hidden]) :is(aside, .panel)")]
const boxes = seen.map((each) => each.getBoundingClientRect())
const meet = (a, b, from, to) => a[from] < b[to] - 1 && b[from] < a[to] - 1
const over = (a, b) => meet(a, b, "left", "right") && meet(a, b, "top", "bottom")
const covered = boxes.some((a, i) => boxes.some((b, k) => i < k && over(a, b)))
const figures = deep(".bk-Figure").map((each) => each.getBoundingClientRect()).filter((each) => each.width)
const keys = [...document.querySelectorAll("main:not([hidden]) .key")]
const legends = keys.map((each) => each.getBoundingClientRect())
return {
  wide: document.documentElement.scrollWidth, covered, panels: boxes.length,
  flat: figures.filter((each) => each.height < 80).length,
  beyond: figures.filter((each) => each.right > innerWidth + 1).length,
  legends: legends.filter((key) => figures.some((figure) => over(key, figure))).length,
}
"""

PLACES = """
const top = (selector) => document.querySelector(`main:not([hidden]) ${selector}`).getBoundingClientRect().top
return [top("aside") + scrollY, top(".panel") + scrollY, top("aside")]
"""


@pytest.mark.cover(1)
@pytest.mark.parametrize("width", [360, 390, 820, 1280])
@pytest.mark.parametrize("view", ["neuron", "network"])
def test_nothing_is_cut_or_covered_at_any_width(page, browser, width, view):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.run(f"show('{view}')")
        page.until("root('network_layers').children.length", 2)
        page.settled()
        found = page.run(BOXES)
        page.run("scrollTo(0, 1e6)")
        controls, plot, bottom = page.run(PLACES)
    finally:
        page.run("scrollTo(0, 0)")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert found["wide"] <= width
    if width < 700:  # a plot first, and the controls begin on the same screen
        assert 0 < plot < controls < 900
    else:  # the controls stay in sight, however far one scrolls
        assert 0 <= bottom < 900
    assert found["panels"] == 4
    assert not found["covered"]
    assert (found["beyond"], found["flat"]) == (0, 0)
    assert found["legends"] == 0


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
