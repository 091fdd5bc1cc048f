"""How long ``hibana play`` takes to answer a slider: from the key press to the painted frame, in Chromium.

    python benchmarks/playground.py [--repeats 40]

Needs the extra ``play``, selenium, and Debian's chromium and chromium-driver. Each press of an arrow key
moves a slider by one step, to and fro; the time ends after the first animation frame in which no figure that
is shown is left to be painted.
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
if (!window.took) {
  window.took = []
  addEventListener("keydown", () => {
    const begun = performance.now()
    const shown = view("potential").model
    const answer = shown.renderers[0].data_source.properties.data
    const plots = [...Bokeh.index.query((view) => "throttled_paint" in view)]
    const came = () => {
      answer.change.disconnect(came)
      const data = performance.now() - begun
      const painted = () => requestAnimationFrame(() => setTimeout(() => {
        if (plots.some((view) => view.is_displayed && view._invalidated_painters.size)) return painted()
        took.push([data, performance.now() - begun])
      }))
      painted()
    }
    answer.change.connect(came)
  }, true)
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="presses for each slider (default: 40)")
    parser.add_argument("--cells", default="LIF,ALIF,Izhikevich", help="cells to move (default: %(default)s)")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "hibana", "play", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in measured(
                server.stdout.readline().strip(), arguments.cells.split(","), arguments.repeats
            ):
                print(line, flush=True)
        finally:
            server.send_signal(signal.SIGINT)


def measured(address: str, cells: list[str], repeats: int):
    """One line of a table for each cell and slider."""
    driver = browser()
    try:
        driver.get(address)
        ready = "return !!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)"
        wait(driver, ready)
        driver.execute_script(SETUP)
        yield "| cell | slider | data there, median | painted, median | 95% | largest |"
        yield "|---|---|---|---|---|---|"
        everything = []
        for cell in cells:
            driver.execute_script("choose(arguments[0])", cell)
            time.sleep(6)  # its kernel may have to be compiled
            for name in SLIDERS:
                handle = driver.execute_script("return handle(arguments[0])", name)
                if handle is None:
                    continue
                times = presses(driver, handle, repeats)
                everything += times
                yield row(cell, name, times)
        yield row("all", "", everything)
        yield json.dumps({"presses": len(everything), "chromium": driver.capabilities["browserVersion"]})
    finally:
        driver.quit()


def presses(driver, handle, repeats: int) -> list[tuple[float, float]]:
    driver.execute_script("took.length = 0; arguments[0].focus()", handle)
    for press in range(repeats + 3):
        handle.send_keys("\ue012" if press % 2 else "\ue014")  # arrow right, arrow left
        wait(driver, f"return took.length > {press}")
        time.sleep(0.1)
    return driver.execute_script("return took")[3:]  # the first ones warm caches


def row(cell: str, name: str, times: list[tuple[float, float]]) -> str:
    ordered = sorted(painted for _, painted in times)
    there = statistics.median(data for data, _ in times)
    shown = (there, statistics.median(ordered), ordered[int(0.95 * (len(times) - 1))], ordered[-1])
    return f"| {cell} | {name} | " + " | ".join(f"{value:.0f} ms" for value in shown) + " |"


def wait(driver, code: str) -> None:
    ended = time.monotonic() + 120
    while not driver.execute_script(code):
        if time.monotonic() > ended:
            raise TimeoutError(f"{code} stayed false for two minutes")
        time.sleep(0.02)


def browser():
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
