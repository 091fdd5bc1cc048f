"""``hibana train`` alone and beside one busy process: ``python -m benchmarks.busy``.

Each training is the command itself, from its start to its end, in turn alone and beside a process that
computes without a pause, on two processors: of more, a busy process would leave enough. What begins before
the first epoch and follows the last computes with one thread whatever is chosen, so that the ratio of the
training by itself stands beside that of the command.
"""

import argparse
import csv
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.tables import number, table
from hibana.train import Settings, build_classifier
from hibana.train.threads import choose

AT_MOST = 2.5
"""Times its time alone that a command may take beside one busy process."""

TRAININGS = {
    "digits": ("--data", "digits", "--epochs", "10"),
    "digits, two layers of 1024": ("--data", "digits", "--layers", "1024,1024", "--epochs", "5"),
    "mnist-1d": ("--data", "mnist-1d", "--epochs", "3"),
    "a CSV of 600 rows": ("--data", "rows.csv", "--epochs", "20"),
    "fashion-mnist": ("--data", "fashion-mnist", "--epochs", "1"),
}
"""Of each training, its options; `rows.csv` is made."""

HEAD = ["", "threads", "alone, s", "beside, s", "ratio", "its training alone, s", "beside, s", "ratio"]


def rows(path: Path) -> None:
    """Writes a table of 600 rows: twelve normal numbers and which of the first three is the largest."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*(f"x{column}" for column in range(12)), "largest"])
        for _ in range(600):
            numbers = [round(draw.gauss(0, 1), 4) for _ in range(12)]
            lines.writerow([*numbers, "abc"[max(range(3), key=numbers.__getitem__)]])


@contextmanager
def busy() -> Iterator[None]:
    """A process that computes without a pause, meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds(options: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Seconds of the whole command in `folder`, and those that it says were of its training."""
    command = [sys.executable, "-m", "hibana", "train", *options, "--out", "run", "--overwrite"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    whole = time.perf_counter() - began
    said = re.search(r"([\d.]+) s of them training", done.stdout)
    if done.returncode or said is None:
        raise SystemExit(f"hibana train {' '.join(options)} ended with {done.returncode}: {done.stderr}")
    return whole, float(said[1])


def threads(options: tuple[str, ...], folder: Path) -> int:
    """How many threads the command chooses for a training."""
    given = dict(zip((name[2:] for name in options[::2]), options[1::2], strict=True))
    data = str(folder / given["data"]) if given["data"].endswith(".csv") else given["data"]
    settings = Settings(data=data, **({"layers": given["layers"]} if "layers" in given else {}))
    samples = settings.samples()
    samples.prepare_data()
    samples.setup()
    before = torch.get_num_threads()
    try:
        return choose(build_classifier(settings, samples))
    finally:
        torch.set_num_threads(before)  # the next one may choose more


def main() -> None:
    """The table, printed; ends with 1 if a command took more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TRAININGS, nargs="+", default=list(TRAININGS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    lines, late = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(folder / "rows.csv")
        for title in options.only:
            chosen = TRAININGS[title]
            try:
                count = threads(chosen, folder)
            except FileNotFoundError as error:
                print(f"{title} is left out: {error}", file=sys.stderr)
                continue
            alone, beside = [], []
            for _ in range(options.rounds):
                alone.append(seconds(chosen, folder))
                with busy():
                    beside.append(seconds(chosen, folder))
            (whole, training), (slow, slow_training) = (
                [statistics.median(part) for part in zip(*found, strict=True)] for found in (alone, beside)
            )
            if slow > AT_MOST * whole:
                late.append(title)
            times = [whole, slow, slow / whole, training, slow_training, slow_training / training]
            lines.append([title, str(count), *map(number, times)])
    print("\n".join(table(HEAD, lines)))
    if late:
        raise SystemExit(f"more than {AT_MOST} times its time alone: {', '.join(late)}")


if __name__ == "__main__":
    main()
