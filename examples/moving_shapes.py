"""Simulated event camera recordings of moving shapes, and the effect of augmentation with few samples.

    python examples/moving_shapes.py make FOLDER --per-class 20 --tested 50 --seed 0
    python examples/moving_shapes.py try --seed 0 1 2 3 4 --record runs.jsonl
    python examples/moving_shapes.py table runs.jsonl

A camera of 32x32 pixels films one of eight shapes for 100 ms. Size, position, direction, speed and rotation
are random and independent of the shape. If the brightness of a pixel changes, it sends an on or off event
after a random delay, with some probability; a fifth of all events is noise. ``try`` trains the default
network of ``hibana train`` on 20 recordings of each shape, with and without augmentation, and tests it on 50
others of each shape.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from hibana import train

SIDE, FINE, FRAMES = 32, 2, 40
"""Pixels per side, sample points per side of a pixel, and frames of a recording."""
DURATION = 100_000
"""Duration of a recording in microseconds."""
MISSED, NOISE = 0.3, 0.2
"""Fraction of events that are not sent, and fraction of all events that are noise."""
AUGMENTATIONS = ("none", "flip", "flip-roll")
STEPS, EPOCHS = 10, 60


def _star(angle: np.ndarray, radius: np.ndarray, points: int) -> np.ndarray:
    return radius < 0.55 + 0.45 * np.cos(points * angle)


def shapes(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Returns for each shape which of the points lie in it; the unit of `x` and `y` is the shape's radius."""
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    square = (abs(x) < 0.8) & (abs(y) < 0.8)
    return {
        "circle": radius < 0.9,
        "square": square,
        "triangle": (y > -0.6) & (y < 1 - 1.9 * abs(x)),
        "ring": (radius < 0.95) & (radius > 0.55),
        "cross": (abs(x) < 0.3) & (abs(y) < 0.95) | (abs(y) < 0.3) & (abs(x) < 0.95),
        "frame": square & ~((abs(x) < 0.45) & (abs(y) < 0.45)),
        "flower": _star(angle, radius, 5),
        "half": (radius < 0.95) & (y > -0.1),
    }


NAMES = tuple(shapes(np.zeros(1), np.zeros(1)))


def recording(name: str, random: np.random.Generator) -> np.ndarray:
    """Returns the events ``[N, 4]`` of one shape in order of time: microseconds, column, row, polarity."""
    size, direction = random.uniform(0.16, 0.24), random.uniform(0, 2 * np.pi)
    middle, speed = random.uniform(0.35, 0.65, 2), random.uniform(0.15, 0.3)
    turn, turning = random.uniform(-0.3, 0.3), random.uniform(-0.5, 0.5)
    points = (np.arange(SIDE * FINE) + 0.5) / (SIDE * FINE)
    row, column = np.meshgrid(points, points, indexing="ij")
    before, events = None, []
    for frame in range(FRAMES):
        along = frame / (FRAMES - 1) - 0.5
        x = (column - middle[0] - speed * along * np.cos(direction)) / size
        y = (row - middle[1] - speed * along * np.sin(direction)) / size
        angle = turn + turning * along
        x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        bright = shapes(x, -y)[name].reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))
        if before is None:
            before = bright
            continue
        for polarity, change in ((1, bright - before), (0, before - bright)):
            where = np.argwhere((change > 0.25) & (random.random(change.shape) > MISSED))
            if len(where):
                time = (frame + random.random(len(where))) * DURATION / FRAMES
                events.append(np.column_stack([time, where[:, ::-1], np.full(len(where), polarity)]))
        changed = abs(bright - before) > 0.25
        before = np.where(changed, bright, before)
    signal = np.concatenate(events)
    noise = random.uniform(0, [DURATION, SIDE, SIDE, 2], (int(len(signal) * NOISE / (1 - NOISE)), 4))
    joined = np.concatenate([signal, np.column_stack([noise[:, 0], np.floor(noise[:, 1:])])])
    return np.floor(joined[np.argsort(joined[:, 0], kind="stable")])


def make(folder: Path, per_class: int, tested: int, seed: int) -> None:
    """Writes recordings to ``train/SHAPE/NUMBER.npy`` and ``test/SHAPE/NUMBER.npy`` in `folder`."""
    for part, count, which in (("train", per_class, 0), ("test", tested, 1)):
        for label, name in enumerate(NAMES):
            part_folder = folder / part / name
            part_folder.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([seed, which, label])
            for number in range(count):
                np.save(part_folder / f"{number:04d}.npy", recording(name, random))


def trial(folder: Path, augmentation: str, seed: int) -> dict[str, object]:
    """Trains and tests the network on the recordings in `folder`; returns the result as a JSON row."""
    settings = train.Settings(
        data=str(folder), kind="events", steps=STEPS, epochs=EPOCHS, batch_size=16,
        augment=augmentation, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as runs:
        _, outcome = train.fit(settings, runs)
    return {"way": augmentation, "seed": seed, "accuracy": outcome.accuracy, "seconds": outcome.seconds}


def table(records: list[dict[str, object]]) -> str:
    """Returns a Markdown table with a row per augmentation: accuracies, and mean duration of a training."""
    rows_by_augmentation = defaultdict(list)
    for row in records:
        rows_by_augmentation[row["way"]].append(row)
    lines = ["| `--augment` | mean % | each seed % | s |", "|---|---|---|---|"]
    for augmentation, rows in rows_by_augmentation.items():
        accuracies = [100 * float(row["accuracy"]) for row in rows]
        seconds = mean(float(row["seconds"]) for row in rows)
        seeds = ", ".join(f"{value:.1f}" for value in accuracies)
        lines.append(f"| `{augmentation}` | {mean(accuracies):.1f} | {seeds} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("folder", type=Path)
    tries = commands.add_parser("try")
    tries.add_argument("--record", type=Path, help="append a JSON line per training to this file")
    tries.add_argument("--way", nargs="+", default=AUGMENTATIONS, help="augmentations")
    for command in (maker, tries):
        command.add_argument("--per-class", type=int, default=20)
        command.add_argument("--tested", type=int, default=50)
    maker.add_argument("--seed", type=int, default=0)
    tries.add_argument("--seed", type=int, nargs="+", default=range(5))
    commands.add_parser("table").add_argument("records", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.folder, options.per_class, options.tested, options.seed)
        return
    if options.command == "table":
        print(table([json.loads(line) for line in options.records.read_text().splitlines()]))
        return
    torch.set_flush_denormal(True)
    records = []
    for seed in options.seed:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), options.per_class, options.tested, seed)
            for augmentation in options.way:
                records.append(trial(Path(folder), augmentation, seed))
                print(json.dumps(records[-1]), flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(f"{json.dumps(records[-1])}\n")
    print(table(records))


if __name__ == "__main__":
    main()
