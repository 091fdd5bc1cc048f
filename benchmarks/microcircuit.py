"""``python -m benchmarks.microcircuit``: the real-time factor of the cortical microcircuit at several scales.

    python -m benchmarks.microcircuit [--scales 0.05 0.1 0.2 0.5 1] [--seconds 3] [--repeat 3] [--out FILE]
    python -m benchmarks.microcircuit --draw FILE.json --out FILE.png      # only the figure

Each run starts ``examples/microcircuit.py`` in a new process, alternately with one and with two threads. The
real-time factor is the number of seconds that simulating one second takes; the best repetition
counts. Scale 1 needs 6 GB of memory. ``--out`` names the figure (PNG); a JSON file beside it has the numbers.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "microcircuit.py"
NUMBERS = re.compile(r"built in (?P<build>[\d.]+) s.*real-time factor (?P<factor>[\d.]+)")


def run(scale: float, seconds: float, threads: int) -> tuple[float, float]:
    """Runs the example once; returns the build time in seconds and the real-time factor."""
    command = [sys.executable, EXAMPLE, "--scale", str(scale), "--seconds", str(seconds)]
    result = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    numbers = NUMBERS.search(result.stdout)
    if numbers is None:
        raise RuntimeError(f"{EXAMPLE.name} printed no real-time factor: {result.stdout!r}")
    return float(numbers["build"]), float(numbers["factor"])


def measure(scales: list[float], seconds: float, repeat: int) -> dict[str, list[list[float]]]:
    """Rows [scale, build time, real-time factor] by the number of threads, "1" or "2"."""
    rows: dict[str, list[list[float]]] = {"1": [], "2": []}
    for scale in scales:
        runs = [{threads: run(scale, seconds, int(threads)) for threads in rows} for _ in range(repeat)]
        for threads, table in rows.items():
            build, factor = (min(column) for column in zip(*(each[threads] for each in runs), strict=True))
            table.append([scale, build, factor])
            print(f"scale {scale}, {threads} threads: built in {build} s, factor {factor}", flush=True)
    return rows


def draw(rows: dict[str, list[list[float]]], file: Path) -> None:
    """Writes the figure: the real-time factor against the scale, one line for each number of threads."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), dpi=160, layout="constrained")
    for (threads, table), color in zip(rows.items(), ("#4c78a8", "#e4572e"), strict=True):
        scale, _, factor = zip(*table, strict=True)
        axes.loglog(scale, factor, "o-", color=color, label=f"{threads} thread{'s' * (threads != '1')}")
        for x, y in zip(scale, factor, strict=True):
            above = threads == "1"
            offset, side = ((0, 6), "bottom") if above else ((0, -6), "top")
            place = {"textcoords": "offset points", "ha": "center", "va": side}
            axes.annotate(f"{y:g}", (x, y), offset, color=color, **place)
    axes.axhline(1, color="gray", linewidth=0.8, linestyle="--")
    axes.text(axes.get_xlim()[0] * 1.05, 1.1, "real time", color="gray", va="bottom")
    axes.set_xticks(scale, [f"{x:g}" for x in scale])
    axes.minorticks_off()
    axes.set(xlabel="scale (1: 77,169 neurons, 299 million synapses)", ylabel="real-time factor")
    axes.set_ylim(min(table[0][2] for table in rows.values()) / 2, max(t[-1][2] for t in rows.values()) * 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file)


def main() -> None:
    """Measures, or reads the numbers of an earlier run, and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5, 1])
    parser.add_argument("--seconds", type=float, default=3, help="simulated seconds of each run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("microcircuit.png"))
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="draw the numbers of an earlier run")
    options = parser.parse_args()
    if options.draw:
        record = json.loads(options.draw.read_text(encoding="utf-8"))
    else:
        rows = measure(options.scales, options.seconds, options.repeat)
        record = {"machine": platform.processor() or platform.machine(), "threads": rows}
        options.out.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    draw(record["threads"], options.out)


if __name__ == "__main__":
    main()
