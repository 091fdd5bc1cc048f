"""Plays the file of an event camera in real time through a compiled network.

    python examples/event_camera.py

A simulated camera of 32x32 pixels films moving circles, crosses and squares. A pixel whose brightness has
changed by `CONTRAST` sends an event: time, column, row, brighter or darker. A small network is trained on
short recordings. Then a longer recording of several shapes is played in real time: at the end of each window
of events, the network takes a step and prints the shape. With ``--fast`` it does not wait for the clock.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from hibana.data.user_data.events import read_events

SIDE, CONTRAST, NOISE, FRAME = 32, 0.25, 0.3, 4
"""Pixels per side, change in brightness that causes an event, noise events per millisecond, and milliseconds
between two frames of the simulation.
"""
MILLISECONDS, WINDOWS = 300, 30
"""Duration of a training recording in milliseconds, and its number of windows."""
EVENT = np.dtype([("t", "i8"), ("x", "u2"), ("y", "u2"), ("p", "u1")])
"""Time in microseconds, column, row, and polarity: 1 for brighter."""
SHAPES: dict[str, Any] = {
    "circle": lambda x, y, size: np.hypot(x, y) - size,
    "cross": lambda x, y, size: np.minimum(np.maximum(x, 3 * y), np.maximum(3 * x, y)) - size,
    "square": lambda x, y, size: np.maximum(x, y) - 0.85 * size,
}
"""Distance of a point from the border of each shape, from its distances x and y to the centre."""


def record(shape: str, milliseconds: int, random: np.random.Generator, start: int = 0) -> np.ndarray:
    """Returns the events of a moving shape, which reverses at the borders.

    Args:
        shape: one of :data:`SHAPES`.
        milliseconds: duration.
        random: random numbers.
        start: time of the first frame in milliseconds.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE]
    size, direction = random.uniform(6, 9), random.uniform(0, 2 * np.pi)
    position = random.uniform(10, SIDE - 10, 2)
    speed = random.uniform(0.03, 0.08) * np.array([np.cos(direction), np.sin(direction)])  # pixels a ms
    reference, frames = None, []
    for now in range(start, start + milliseconds, FRAME):
        position = position + FRAME * speed
        is_outside = abs(position - SIDE / 2) > SIDE / 2 - 8
        speed = np.where(is_outside, np.sign(SIDE / 2 - position) * abs(speed), speed)
        distance = SHAPES[shape](abs(columns - position[0]), abs(rows - position[1]), size)
        brightness = 1 / (1 + np.exp(np.clip(4 * distance, -50, 50)))
        reference = brightness if reference is None else reference
        changed = np.trunc((brightness - reference) / CONTRAST)
        reference = reference + changed * CONTRAST
        y, x = np.nonzero(changed)
        noise = random.integers(0, [SIDE, SIDE, 2], (random.poisson(FRAME * NOISE), 3))
        events = np.zeros(len(x) + len(noise), EVENT)
        events["t"] = 1000 * now + random.integers(0, 1000 * FRAME, len(events))
        events["x"], events["y"] = np.append(x, noise[:, 0]), np.append(y, noise[:, 1])
        events["p"] = np.append(changed[y, x] > 0, noise[:, 2])
        frames.append(np.sort(events, order="t"))
    return np.concatenate(frames)


def write_recordings(folder: Path, count: int, random: np.random.Generator) -> None:
    """Writes `count` recordings of each shape to a folder in `folder` with the name of the shape."""
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for index in range(count):
            np.save(folder / shape / f"{index:03}.npy", record(shape, MILLISECONDS, random))


def network() -> nn.Sequential:
    """Returns a network from windows of events ``[T, batch, 2, 32, 32]`` to a potential for each shape."""

    def images(inputs: int, outputs: int, side: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, side, stride=2, padding=side // 2, bias=False)
        neurons = hb.LIF(tau=4.0, surrogate="ATan", detach_reset=True)
        return [hb.EachStep(nn.Sequential(convolution, nn.BatchNorm2d(outputs))), neurons]

    readout = [nn.Flatten(2), nn.Linear(16 * 8 * 8, len(SHAPES)), hb.LI(tau=10.0)]
    return nn.Sequential(*images(2, 8, 5), *images(8, 16, 3), *readout)


def train(net: nn.Module, data: hb.data.Events, epochs: int) -> float:
    """Trains `net` on recordings; returns the accuracy at the end of the test recordings."""
    batches, peak = data.train_dataloader(), 1e-2
    optimizer = torch.optim.Adam(net.parameters(), peak)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * len(batches))
    net.train()
    for _ in range(epochs):
        for spikes, labels in batches:
            outputs = net(spikes.float().transpose(0, 1))[WINDOWS // 3 :]
            loss = functional.cross_entropy(outputs.mean(0), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    net.eval()
    with torch.no_grad():
        correct = [
            net(spikes.float().transpose(0, 1))[-1].argmax(1) == labels
            for spikes, labels in data.test_dataloader()
        ]
    return float(torch.cat(correct).float().mean())


class Window(NamedTuple):
    """The events of a window of time."""

    end: float
    """End of the window in seconds after the first event."""
    indices: Tensor
    """Index of each event among all polarities, rows and columns."""


def windows(events: np.ndarray, width: float) -> Iterator[Window]:
    """Yields the windows of `width` microseconds of the recording `events`, ``[N, 4]``."""
    t, x, y, p = events.astype(np.int64).T
    numbers = ((t - t[0]) // width).astype(np.int64)
    indices = torch.from_numpy((p * SIDE + y) * SIDE + x)
    ends = np.searchsorted(numbers, np.arange(numbers[-1] + 1), side="right")
    for index, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        yield Window((index + 1) * width * 1e-6, indices[begin:end])


class Answer(NamedTuple):
    """The network's answer after a window."""

    shape: int
    seconds: float
    """Time from the end of the window to the answer."""


def play(stream: Any, events: np.ndarray, width: float, *, fast: bool = False) -> Iterator[Answer]:
    """Plays a recording through a compiled network; yields an answer at the end of each window.

    Args:
        stream: the compiled network.
        events: the recording, ``[N, 4]``.
        width: length of a window in microseconds.
        fast: do not wait for the clock.
    """
    stream.reset()
    start = time.perf_counter()
    for window in windows(events, width):
        if not fast:
            time.sleep(max(0.0, start + window.end - time.perf_counter()))
        due = time.perf_counter() if fast else start + window.end
        shape = int(stream.events(window.indices).argmax())
        yield Answer(shape, time.perf_counter() - due)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--recordings", type=int, default=100, help="training recordings of each shape")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--seconds", type=float, default=6.0, help="duration of the played recording")
    options.add_argument("--fast", action="store_true", help="do not wait for the clock")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    with TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        write_recordings(folder / "training", arguments.recordings, random)
        data = hb.data.Events(folder / "training", size=SIDE, steps=WINDOWS, batch_size=16)
        data.setup()
        net = network()
        accuracy = train(net, data, arguments.epochs)
        seconds = time.perf_counter() - start
        print(f"trained in {seconds:.0f} s; {accuracy:.0%} of the test recordings right")
        width = data.description.inputs.duration / WINDOWS
        count = max(1, round(arguments.seconds))
        shapes = [list(SHAPES)[index % len(SHAPES)] for index in range(count)]
        length = round(1000 * arguments.seconds / count)
        scenes = [record(shape, length, random, index * length) for index, shape in enumerate(shapes)]
        np.save(folder / "scene.npy", np.concatenate(scenes))
        events = read_events(folder / "scene.npy")
    stream = hb.compile(net, torch.zeros(1, 1, 2, SIDE, SIDE)).stream()
    durations, before = [], None
    for index, answer in enumerate(play(stream, events, width, fast=arguments.fast)):
        durations.append(answer.seconds)
        if answer.shape != before:
            shape = shapes[min(count - 1, int(index * width / 1000 / length))]
            print(f"{index * width * 1e-6:6.2f} s  {data.names[answer.shape]}  (shown: {shape})", flush=True)
            before = answer.shape
    durations.sort()
    late = durations[min(len(durations) - 1, len(durations) * 99 // 100)]
    middle = statistics.median(durations)
    print(
        f"{len(events):,} events in {len(durations)} windows of {width / 1000:.1f} ms; from a window's end to"
    )
    print(f"its answer median {middle * 1e6:.0f} µs, 99th percentile {late * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
