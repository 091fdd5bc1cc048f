"""An event camera's file, played at its own pace through a compiled network.

    python examples/event_camera.py

A simulated camera of 32x32 pixels films circles, crosses and squares that move: a pixel whose brightness has
changed by `CONTRAST` sends an event (time, column, row, brighter or darker). A small network learns from
short recordings. Then a longer one, in which shape follows shape, is played as a camera would send it: when a
window of events has ended, the network takes a step and says what it sees. With ``--fast`` nothing waits for
the clock.
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
from hibana.data.user_data.event_files import read_events

SIDE, CONTRAST, NOISE, FRAME = 32, 0.25, 0.3, 4
"""Pixels, the change of brightness of an event (from 0 to 1), events a millisecond that mean nothing, and the
milliseconds from one look at the shape to the next.
"""
MILLISECONDS, WINDOWS = 300, 30
"""Of a recording to learn from."""
EVENT = np.dtype([("t", "i8"), ("x", "u2"), ("y", "u2"), ("p", "u1")])
"""Time in microseconds, column, row, and 1 if it became brighter."""
SHAPES: dict[str, Any] = {
    "circle": lambda x, y, size: np.hypot(x, y) - size,
    "cross": lambda x, y, size: np.minimum(np.maximum(x, 3 * y), np.maximum(3 * x, y)) - size,
    "square": lambda x, y, size: np.maximum(x, y) - 0.85 * size,
}
"""How far outside of the shape a point is, at the distances x and y from its centre."""


def filmed(shape: str, milliseconds: int, drawn: np.random.Generator, begun: int = 0) -> np.ndarray:
    """The events of a shape that moves, and turns back at the borders, from the millisecond `begun` on."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    size, direction = drawn.uniform(6, 9), drawn.uniform(0, 2 * np.pi)
    place = drawn.uniform(10, SIDE - 10, 2)
    speed = drawn.uniform(0.03, 0.08) * np.array([np.cos(direction), np.sin(direction)])  # pixels a ms
    seen, found = None, []
    for now in range(begun, begun + milliseconds, FRAME):
        place = place + FRAME * speed
        outside = abs(place - SIDE / 2) > SIDE / 2 - 8
        speed = np.where(outside, np.sign(SIDE / 2 - place) * abs(speed), speed)
        distance = SHAPES[shape](abs(columns - place[0]), abs(rows - place[1]), size)
        brightness = 1 / (1 + np.exp(np.clip(4 * distance, -50, 50)))
        seen = brightness if seen is None else seen
        changed = np.trunc((brightness - seen) / CONTRAST)
        seen = seen + changed * CONTRAST
        y, x = np.nonzero(changed)
        noise = drawn.integers(0, [SIDE, SIDE, 2], (drawn.poisson(FRAME * NOISE), 3))
        events = np.zeros(len(x) + len(noise), EVENT)
        events["t"] = 1000 * now + drawn.integers(0, 1000 * FRAME, len(events))
        events["x"], events["y"] = np.append(x, noise[:, 0]), np.append(y, noise[:, 1])
        events["p"] = np.append(changed[y, x] > 0, noise[:, 2])
        found.append(np.sort(events, order="t"))
    return np.concatenate(found)


def film(folder: Path, each: int, drawn: np.random.Generator) -> None:
    """Writes `each` recordings of each shape to `folder`, in a folder by its name."""
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for index in range(each):
            np.save(folder / shape / f"{index:03}.npy", filmed(shape, MILLISECONDS, drawn))


def network() -> nn.Sequential:
    """From the events of a window, ``[T, batch, 2, 32, 32]``, to a potential for each shape."""

    def images(inputs: int, outputs: int, side: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, side, stride=2, padding=side // 2, bias=False)
        neurons = hb.LIF(tau=4.0, surrogate="ATan", detach_reset=True)
        return [hb.EachStep(nn.Sequential(convolution, nn.BatchNorm2d(outputs))), neurons]

    readout = [nn.Flatten(2), nn.Linear(16 * 8 * 8, len(SHAPES)), hb.LI(tau=10.0)]
    return nn.Sequential(*images(2, 8, 5), *images(8, 16, 3), *readout)


def train(net: nn.Module, data: hb.data.Events, epochs: int) -> float:
    """Trains `net` on recordings; returns the part of those held out that it knows at their end."""
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
        known = [
            net(spikes.float().transpose(0, 1))[-1].argmax(1) == labels
            for spikes, labels in data.test_dataloader()
        ]
    return float(torch.cat(known).float().mean())


class Window(NamedTuple):
    """Events that came together."""

    end: float
    """Seconds after the first event."""
    places: Tensor
    """Of the inputs that they are, of all pixels and polarities."""


def windows(events: np.ndarray, width: float) -> Iterator[Window]:
    """The events of a recording, ``[events, 4]``, in windows of `width` microseconds."""
    t, x, y, p = events.astype(np.int64).T
    of_window = ((t - t[0]) // width).astype(np.int64)
    places = torch.from_numpy((p * SIDE + y) * SIDE + x)
    ends = np.searchsorted(of_window, np.arange(of_window[-1] + 1), side="right")
    for index, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        yield Window((index + 1) * width * 1e-6, places[begin:end])


class Answer(NamedTuple):
    """What was seen in a window."""

    shape: int
    seconds: float
    """From when its last event could come to the answer."""


def play(stream: Any, events: np.ndarray, width: float, *, fast: bool = False) -> Iterator[Answer]:
    """Plays a recording through `stream`: an answer for each window of `width` microseconds, when it ends."""
    stream.reset()
    begun = time.perf_counter()
    for window in windows(events, width):
        if not fast:
            time.sleep(max(0.0, begun + window.end - time.perf_counter()))
        due = time.perf_counter() if fast else begun + window.end
        shape = int(stream.events(window.places).argmax())
        yield Answer(shape, time.perf_counter() - due)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--recordings", type=int, default=100, help="of each shape, to learn from")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--seconds", type=float, default=6.0, help="of the recording that is played")
    options.add_argument("--fast", action="store_true", help="don't wait for the clock")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.manual_seed(asked.seed)
    drawn = np.random.default_rng(asked.seed)
    with TemporaryDirectory() as name:
        folder, begun = Path(name), time.perf_counter()
        film(folder / "training", asked.recordings, drawn)
        data = hb.data.Events(folder / "training", size=SIDE, steps=WINDOWS, batch_size=16)
        data.setup()
        net = network()
        known = train(net, data, asked.epochs)
        print(f"trained in {time.perf_counter() - begun:.0f} s; knows {known:.0%} of the test recordings")
        width = data.description.inputs.duration / WINDOWS
        each = max(1, round(asked.seconds))
        shown = [list(SHAPES)[index % len(SHAPES)] for index in range(each)]
        length = round(1000 * asked.seconds / each)
        scenes = [filmed(shape, length, drawn, index * length) for index, shape in enumerate(shown)]
        np.save(folder / "scene.npy", np.concatenate(scenes))
        events = read_events(folder / "scene.npy")
    stream = hb.compile(net, torch.zeros(1, 1, 2, SIDE, SIDE)).stream()
    taken, before = [], None
    for index, answer in enumerate(play(stream, events, width, fast=asked.fast)):
        taken.append(answer.seconds)
        if answer.shape != before:
            there = shown[min(each - 1, int(index * width / 1000 / length))]
            print(f"{index * width * 1e-6:6.2f} s  {data.names[answer.shape]}  (shown: {there})", flush=True)
            before = answer.shape
    taken.sort()
    middle, slow = statistics.median(taken), taken[min(len(taken) - 1, len(taken) * 99 // 100)]
    print(f"{len(events):,} events in {len(taken)} windows of {width / 1000:.1f} ms; from a window's end to")
    print(f"its answer median {middle * 1e6:.0f} µs, 99th percentile {slow * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
