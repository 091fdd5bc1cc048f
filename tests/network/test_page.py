"""The HTML page of a network: opened from disk in headless Chromium, with strokes drawn by events."""

import http.server
import json
import math
import re
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import hibana as hb
from c_targets import needs_zig
from hibana.network.page import to_page

SHIPPED = Path(__file__).parents[2] / "docs" / "digits.html"

DRAW = """
const [strokes, kind] = arguments, pad = document.getElementById("pad"), box = pad.getBoundingClientRect()
const fire = (name, [x, y]) => pad.dispatchEvent(new PointerEvent(name, {bubbles: true, pointerId: 1,
  pointerType: kind, clientX: box.left + x * box.width, clientY: box.top + y * box.height}))
document.getElementById("clear").click()
for (const stroke of strokes) {
  fire("pointerdown", stroke[0])
  for (const point of stroke) fire("pointermove", point)
  fire("pointerup", stroke.at(-1))
}
return document.getElementById("answer").textContent
"""


def arc(x, y, wide, high, begin, end):
    """Points of an arc, in turns of pi."""
    turns = [math.pi * (begin + (end - begin) * i / 24) for i in range(25)]
    return [[x + wide * math.cos(turn), y + high * math.sin(turn)] for turn in turns]


STROKES = {
    "0": [arc(0.5, 0.5, 0.18, 0.3, 0, 2)],
    "1": [[[0.42, 0.3], [0.52, 0.2], [0.52, 0.8]]],
    "3": [arc(0.47, 0.35, 0.17, 0.15, -0.9, 0.5) + arc(0.47, 0.65, 0.19, 0.15, -0.5, 0.9)],
    "4": [[[0.5, 0.2], [0.3, 0.6], [0.72, 0.6]], [[0.6, 0.42], [0.58, 0.85]]],
    "7": [[[0.3, 0.22], [0.7, 0.22], [0.45, 0.8]], [[0.38, 0.5], [0.65, 0.5]]],
}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1000"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def open_page(browser, path):
    browser.get(path.as_uri())
    deadline = time.monotonic() + 600
    while browser.execute_script("return document.body.dataset.ready") != "yes":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return browser


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_drawn_strokes_give_the_digit(kind, browser):
    page = open_page(browser, SHIPPED)
    assert {digit: page.execute_script(DRAW, strokes, kind) for digit, strokes in STROKES.items()} == {
        digit: digit for digit in STROKES
    }


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_speaks_both_languages(width, browser):
    page = open_page(browser, SHIPPED)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    lead = "return document.querySelector('[data-text=lead]').textContent"
    leads = []
    for _ in range(2):
        page.execute_script("document.getElementById('language').click()")
        leads.append(page.execute_script(lead))
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert sum("スパイキング" in text for text in leads) == 1
    assert page.get_log("browser") == []


@pytest.fixture
def page_url(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    shutil.copy(SHIPPED, tmp_path)
    (tmp_path / "index.html").write_text(
        '<iframe src="digits.html" style="width: 100%; height: 9rem"></iframe>'
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_frame_is_as_high_as_its_content(browser, page_url):
    document = "const d = document.querySelector('iframe').contentDocument; return d && d.body && "
    for width in (1280, 390, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page_url)
        deadline = time.monotonic() + 60
        while browser.execute_script(f"{document}d.body.dataset.ready") != "yes":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)
        content, frame = browser.execute_script(
            f"{document}[d.documentElement.scrollHeight, document.querySelector('iframe').clientHeight]"
        )
        assert frame <= content <= frame + 1
        assert browser.execute_script(f"{document}d.body.offsetHeight") >= frame - 1


def test_the_page_loads_nothing():
    text = SHIPPED.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=|https?://|fetch\(|import\(", text)


@needs_zig
def test_a_page_computes_the_spikes_of_pytorch(browser, tmp_path):
    net = nn.Sequential(nn.Flatten(2), nn.Linear(20, 12), hb.IF(0.3), nn.Linear(12, 3), hb.LI()).eval()
    x = torch.rand(1, 2, 4, 5).expand(6, 2, 4, 5)
    path = tmp_path / "page.html"
    path.write_text(to_page(net, x, title="<b>mine</b>"), encoding="utf-8")
    page = open_page(browser, path)
    outputs = json.loads(page.execute_script("return JSON.stringify(frames.map((f) => [...f.output]))"))
    spikes = page.execute_script("return frames.map((f) => [...f.layers[0]])")
    quantized, _ = hb.quantize(net, x)
    integers = quantized.integer_input(x)
    with torch.no_grad():
        assert quantized.net(integers)[:, 0].tolist() == outputs
        assert quantized.net[:3](integers)[:, 0].tolist() == spikes
    assert page.title == "<b>mine</b>"
    assert page.execute_script("return document.querySelector('h1').textContent") == "<b>mine</b>"


def test_names_are_escaped_in_the_page(monkeypatch):
    monkeypatch.setattr("hibana.network.page.build.webassembly", lambda program: b"")
    name = '</script><!--<script>"@WASM@'
    net = nn.Sequential(nn.Flatten(2), nn.Linear(20, 3))
    net.add_module(name, hb.IF(0.3))
    page = to_page(net, torch.rand(1, 2, 4, 5).expand(6, 2, 4, 5), title="<b>@NETWORK@")
    assert "<title>&lt;b&gt;@NETWORK@</title>" in page
    (content,) = re.findall(r'<script id="network" type="application/json">(.*?)</script>', page)
    assert "<" not in content
    assert [layer["name"] for layer in json.loads(content)["layers"]] == [name]


def test_inputs_that_are_not_constant_images_are_refused():
    net = nn.Sequential(nn.Linear(3, 2), hb.IF())
    with pytest.raises(ValueError, match=r"example must hold images .*\(2, 1, 3\)"):
        to_page(net, torch.rand(2, 1, 3))
    with pytest.raises(ValueError, match="the same image at each step"):
        to_page(net, torch.rand(2, 1, 3, 3))
