"""Recordings of moving shapes, as of an event camera, and what augmentation brings to few of them.

    python examples/moving_shapes.py make FOLDER --per-class 20 --tested 50 --seed 0
    python examples/moving_shapes.py try --seed 0 1 2 3 4 --record runs.jsonl
    python examples/moving_shapes.py table runs.jsonl

Eight shapes, seen by 32x32 pixels for 100 ms. Each has a size, a place, a direction and a speed of its own
and turns a little; none of these says which shape it is. Where the brightness of a pixel changes, an event
comes after a random delay, on or off, and not always; a fifth of all events is noise. A try trains the
network that ``hibana train`` takes for recordings on 20 recordings of each shape, as they are and augmented,
and tests it once on 50 others of each.
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
"""Pixels of a side, points of a pixel's side that are looked at, and frames in `LAST` microseconds."""
LAST = 100_000
MISSED, NOISE = 0.3, 0.2
"""Share of events that do not come, and share of noise in all."""
WAYS = ("none", "flip", "flip-roll")
STEPS, EPOCHS = 10, 60


def _star(angle: np.ndarray, radius: np.ndarray, points: int) -> np.ndarray:
    return radius < 0.55 + 0.45 * np.cos(points * angle)


def shapes(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Which points, in units of a shape's radius, lie in each of the eight shapes."""
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
    """Events ``[N, 4]`` of one shape: microseconds, column, row, polarity; in order of time."""
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
                time = (frame + random.random(len(where))) * LAST / FRAMES
                events.append(np.column_stack([time, where[:, ::-1], np.full(len(where), polarity)]))
        changed = abs(bright - before) > 0.25
        before = np.where(changed, bright, before)
    seen = np.concatenate(events)
    noise = random.uniform(0, [LAST, SIDE, SIDE, 2], (int(len(seen) * NOISE / (1 - NOISE)), 4))
    made = np.concatenate([seen, np.column_stack([noise[:, 0], np.floor(noise[:, 1:])])])
    return np.floor(made[np.argsort(made[:, 0], kind="stable")])


def make(folder: Path, per_class: int, tested: int, seed: int) -> None:
    """Writes ``train/SHAPE/NUMBER.npy`` and ``test/SHAPE/NUMBER.npy``."""
    for part, count, which in (("train", per_class, 0), ("test", tested, 1)):
        for label, name in enumerate(NAMES):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([seed, which, label])
            for number in range(count):
                np.save(place / f"{number:04d}.npy", recording(name, random))


def trial(folder: Path, way: str, seed: int) -> dict[str, object]:
    """One training on the recordings in `folder`, augmented in a `way`, and its test."""
    settings = train.Settings(
        data=str(folder), kind="events", steps=STEPS, epochs=EPOCHS, batch_size=16,
        augment=way, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as runs:
        _, outcome = train.fit(settings, runs)
    return {"way": way, "seed": seed, "accuracy": outcome.accuracy, "seconds": outcome.seconds}


def table(records: list[dict[str, object]]) -> str:
    """A row a way of augmentation: mean accuracy, each seed's, and the mean time of a training."""
    of_way = defaultdict(list)
    for each in records:
        of_way[each["way"]].append(each)
    lines = ["| `--augment` | mean % | each seed % | s |", "|---|---|---|---|"]
    for way, found in of_way.items():
        each = [100 * float(one["accuracy"]) for one in found]
        seconds = mean(float(one["seconds"]) for one in found)
        shown = ", ".join(f"{value:.1f}" for value in each)
        lines.append(f"| `{way}` | {mean(each):.1f} | {shown} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_files = commands.add_parser("make")
    of_files.add_argument("folder", type=Path)
    tries = commands.add_parser("try")
    tries.add_argument("--record", type=Path, help="a file to add a line of JSON a training to")
    tries.add_argument("--way", nargs="+", default=WAYS)
    for each in (of_files, tries):
        each.add_argument("--per-class", type=int, default=20)
        each.add_argument("--tested", type=int, default=50)
    of_files.add_argument("--seed", type=int, default=0)
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
            for way in options.way:
                records.append(trial(Path(folder), way, seed))
                print(json.dumps(records[-1]), flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(f"{json.dumps(records[-1])}\n")
    print(table(records))


if __name__ == "__main__":
    main()
