"""Times the answers of ``hibana play`` in Chromium, from the press of a key to the painted frame.

    python benchmarks/playground.py [--repeats 40]

Needs the extra ``play``, selenium, and Debian's chromium and chromium-driver. Each press of an arrow key
moves a slider by one step, alternately right and left. The time ends after the first animation frame in which
all displayed figures are painted.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SLIDERS = ("threshold", "tau", "input strength", "input noise")
SETUP = """
window.view = (name) => [...Bokeh.index.query((view) => view.model.name === name)].at(-1)
window.handle = (name) => view(name + " slider")?.shadow_el.querySelector(".noUi-handle") ?? null
window.choose = (cell) => { view("cell").model.value = cell }
if (!window.times) {
  window.times = []
  addEventListener("keydown", () => {
    const start = performance.now()
    const figure = view("potential").model
    const answer = figure.renderers[0].data_source.properties.data
    const plots = [...Bokeh.index.query((view) => "throttled_paint" in view)]
    const onData = () => {
      answer.change.disconnect(onData)
      const data = performance.now() - start
      const painted = () => requestAnimationFrame(() => setTimeout(() => {
        if (plots.some((view) => view.is_displayed && view._invalidated_painters.size)) return painted()
        times.push([data, performance.now() - start])
      }))
      painted()
    }
    answer.change.connect(onData)
  }, true)
}
"""


def main() -> None:
    """Starts ``hibana play``, measures its sliders and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="presses for each slider (default: 40)")
    parser.add_argument(
        "--cells", default="LIF,ALIF,Izhikevich", help="cells whose sliders are moved (default: %(default)s)"
    )
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "hibana", "play", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in measure_sliders(
                server.stdout.readline().strip(), arguments.cells.split(","), arguments.repeats
            ):
                print(line, flush=True)
        finally:
            server.send_signal(signal.SIGINT)


def measure_sliders(address: str, cells: list[str], repeats: int):
    """Yields the lines of a table: the times of each cell and slider."""
    driver = start_browser()
    try:
        driver.get(address)
        ready = "return !!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)"
        wait_for(driver, ready)
        driver.execute_script(SETUP)
        yield "| cell | slider | data there, median | painted, median | 95% | largest |"
        yield "|---|---|---|---|---|---|"
        all_times = []
        for cell in cells:
            driver.execute_script("choose(arguments[0])", cell)
            time.sleep(6)  # the cell's kernel may have to be compiled
            for name in SLIDERS:
                handle = driver.execute_script("return handle(arguments[0])", name)
                if handle is None:
                    continue
                times = press_keys(driver, handle, repeats)
                all_times += times
                yield table_row(cell, name, times)
        yield table_row("all", "", all_times)
        yield json.dumps({"presses": len(all_times), "chromium": driver.capabilities["browserVersion"]})
    finally:
        driver.quit()


def press_keys(driver, handle, repeats: int) -> list[tuple[float, float]]:
    """Presses arrow keys on a slider; returns the milliseconds until the data and the frame, per press."""
    driver.execute_script("times.length = 0; arguments[0].focus()", handle)
    for press in range(repeats + 3):
        handle.send_keys("\ue012" if press % 2 else "\ue014")  # arrow right, arrow left
        wait_for(driver, f"return times.length > {press}")
        time.sleep(0.1)
    return driver.execute_script("return times")[3:]  # the first presses warm the caches


def table_row(cell: str, name: str, times: list[tuple[float, float]]) -> str:
    ordered = sorted(painted for _, painted in times)
    data_median = statistics.median(data for data, _ in times)
    values = (data_median, statistics.median(ordered), ordered[int(0.95 * (len(times) - 1))], ordered[-1])
    return f"| {cell} | {name} | " + " | ".join(f"{value:.0f} ms" for value in values) + " |"


def wait_for(driver, code: str) -> None:
    """Waits until the JavaScript `code` returns true, at most two minutes."""
    deadline = time.monotonic() + 120
    while not driver.execute_script(code):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{code} stayed false for two minutes")
        time.sleep(0.02)


def start_browser():
    """A headless Chromium, driven by selenium."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise SystemExit("chromium and chromium-driver must be installed")
    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,800",
        f"--user-data-dir={tempfile.mkdtemp()}",
    ):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


if __name__ == "__main__":
    main()
