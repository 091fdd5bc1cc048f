"""Times ``hibana train`` alone and beside one busy process: ``python -m benchmarks.busy``.

Each training runs the whole command on two processors, alternately alone and beside a process that computes
without a pause. With more processors the busy process would not slow the training down. The work before the
first epoch and after the last always uses one thread, so the table shows two ratios: one for the whole
command and one for the training only.
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

LARGEST_RATIO = 2.5
"""Largest ratio of the time beside a busy process to the time alone. A larger ratio is a failure."""

TRAININGS = {
    "digits": ("--data", "digits", "--epochs", "10"),
    "digits, two layers of 1024": ("--data", "digits", "--layers", "1024,1024", "--epochs", "5"),
    "mnist-1d": ("--data", "mnist-1d", "--epochs", "3"),
    "a CSV of 600 rows": ("--data", "rows.csv", "--epochs", "20"),
    "fashion-mnist": ("--data", "fashion-mnist", "--epochs", "1"),
}
"""Options of ``hibana train`` by the title of the training. :func:`write_table` writes ``rows.csv``."""

COLUMNS = ["", "threads", "alone, s", "beside, s", "ratio", "its training alone, s", "beside, s", "ratio"]


def write_table(path: Path) -> None:
    """Writes 600 rows of twelve normal numbers and a label: a, b or c for the largest of the first three."""
    generator = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{column}" for column in range(12)), "largest"])
        for _ in range(600):
            numbers = [round(generator.gauss(0, 1), 4) for _ in range(12)]
            writer.writerow([*numbers, "abc"[max(range(3), key=numbers.__getitem__)]])


@contextmanager
def busy_process() -> Iterator[None]:
    """Runs a process that computes without a pause while the ``with`` block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run_training(options: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Runs ``hibana train`` in `folder`; returns the seconds of the command and of the training in it."""
    command = [sys.executable, "-m", "hibana", "train", *options, "--out", "run", "--overwrite"]
    start = time.perf_counter()
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    command_seconds = time.perf_counter() - start
    training = re.search(r"([\d.]+) s of them training", result.stdout)
    if result.returncode or training is None:
        raise SystemExit(f"hibana train {' '.join(options)} ended with {result.returncode}: {result.stderr}")
    return command_seconds, float(training[1])


def chosen_thread_count(options: tuple[str, ...], folder: Path) -> int:
    """The number of threads that ``hibana train`` chooses for the training with these options."""
    values = dict(zip((name[2:] for name in options[::2]), options[1::2], strict=True))
    data = str(folder / values["data"]) if values["data"].endswith(".csv") else values["data"]
    settings = Settings(data=data, **({"layers": values["layers"]} if "layers" in values else {}))
    samples = settings.samples()
    samples.prepare_data()
    samples.setup()
    before = torch.get_num_threads()
    try:
        return choose(build_classifier(settings, samples))
    finally:
        torch.set_num_threads(before)  # `choose` never raises the number of threads


def main() -> None:
    """Prints the table; exits with 1 if a ratio is larger than :data:`LARGEST_RATIO`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TRAININGS, nargs="+", default=list(TRAININGS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    table_rows, too_slow = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "rows.csv")
        for title in options.only:
            arguments = TRAININGS[title]
            try:
                count = chosen_thread_count(arguments, folder)
            except FileNotFoundError as error:
                print(f"{title} is skipped: {error}", file=sys.stderr)
                continue
            alone, contended = [], []
            for _ in range(options.rounds):
                alone.append(run_training(arguments, folder))
                with busy_process():
                    contended.append(run_training(arguments, folder))
            (command, training), (slow_command, slow_training) = (
                [statistics.median(times) for times in zip(*runs, strict=True)] for runs in (alone, contended)
            )
            if slow_command > LARGEST_RATIO * command:
                too_slow.append(title)
            command_times = [command, slow_command, slow_command / command]
            training_times = [training, slow_training, slow_training / training]
            table_rows.append([title, str(count), *map(number, command_times + training_times)])
    print("\n".join(table(COLUMNS, table_rows)))
    if too_slow:
        raise SystemExit(f"more than {LARGEST_RATIO} times its time alone: {', '.join(too_slow)}")


if __name__ == "__main__":
    main()
