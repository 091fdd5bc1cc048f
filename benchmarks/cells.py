"""Times small layers of hibana (mode "auto") and of torch, as networks have them, at several densities.

The first part are the shapes to which the constants of :mod:`hibana.spikes.costs` were fitted. The second
part are random shapes with a fixed seed, on which the rule is only tested: do not fit anything to them. The
spikes are plain tensors, about which hibana has recorded nothing in advance. Images and weights are channels
last. A time is the median of alternating calls; calls of a few microseconds are timed in groups.

A job takes a few seconds: ``--only cells/fitted/linear-64x784-512``. ``benchmarks/cells-*.json`` holds the
results of each processor that was measured.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

import hibana as hb
from benchmarks import measure
from benchmarks.grid import inference, training
from benchmarks.tables import grouped, number, table

__all__ = ["LIMIT", "Shape", "jobs", "section", "shapes"]

Row = dict[str, Any]
DENSITIES = (0.02, 0.1, 0.3, 0.6, 1.0)
LIMIT = 1.2
"""Largest ratio to torch's time. At most :data:`SHARE` of the configurations of each part may exceed it."""
SHARE = 0.05
_SEED, _LINEAR, _CONVOLUTIONS = 78, 16, 20
"""The seed of the random part, and its numbers of shapes."""
_MIN_TIMED_SECONDS = 1e-3
"""Calls are repeated until one timing takes at least so many seconds."""
_ATTEMPTS = 3
"""Measurements of a configuration that seems slower than :data:`LIMIT`; the fastest medians count."""


class Shape(NamedTuple):
    """A layer and its number of rows or images; a linear layer has no kernel."""

    count: int
    inputs: int
    outputs: int
    image: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] | None = None
    stride: int = 1
    padding: int = 0

    @property
    def name(self) -> str:
        """The name of a job."""
        if self.kernel is None:
            return f"linear-{self.count}x{self.inputs}-{self.outputs}"
        sides = "x".join(map(str, (*self.kernel, *self.image)))
        return f"conv-{self.count}x{self.inputs}-{self.outputs}-{sides}s{self.stride}p{self.padding}"

    @property
    def work(self) -> float:
        """Multiplications, about."""
        pixels = self.image[0] * self.image[1] / self.stride**2
        height, width = self.kernel or (1, 1)
        return self.count * pixels * self.inputs * self.outputs * height * width

    def layer(self) -> nn.Module:
        """Torch's layer."""
        if self.kernel is None:
            return nn.Linear(self.inputs, self.outputs)
        layer = nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, self.padding)
        return layer.to(memory_format=torch.channels_last)

    def spikes(self, density: float) -> torch.Tensor:
        """Random spikes as input."""
        if self.kernel is None:
            return (torch.rand(self.count, self.inputs) < density).float()
        spikes = (torch.rand(self.count, self.inputs, *self.image) < density).float()
        return spikes.contiguous(memory_format=torch.channels_last)


def shapes() -> dict[str, list[Shape]]:
    """The shapes of each part."""
    widths = (128, 128), (784, 512), (1024, 1024)
    fitted = [Shape(rows, *width) for rows in (1, 16, 64, 256, 2048, 4096) for width in widths]
    fitted += [
        Shape(count, channels, channels, (side, side), (3, 3), 1, 1)
        for count in (4, 32)
        for channels, side in ((16, 28), (64, 16), (128, 8))
    ]
    fitted += [
        Shape(8, 32, 64, (16, 20), (3, 5), 1, 1),
        Shape(16, 64, 32, (14, 14), (5, 3), 1, 2),
        Shape(64, 48, 96, (10, 30), (3, 1), 1, 1),
        Shape(16, 64, 128, (32, 32), (1, 1), 1, 0),
        Shape(16, 32, 64, (32, 32), (3, 3), 2, 1),
        Shape(64, 8, 24, (32, 32), (3, 3), 1, 1),
    ]
    return {"fitted": fitted, "random": _random_shapes()}


def _random_shapes() -> list[Shape]:
    """The random part: always the same shapes."""
    draw = random.Random(_SEED)
    found: list[Shape] = []
    while len(found) < _LINEAR:
        rows = round(2 ** draw.uniform(0, 12))
        inputs = draw.choice((50, 100, 128, 200, 256, 400, 512, 784, 1000, 2048))
        shape = Shape(rows, inputs, draw.choice((10, 20, 50, 64, 100, 128, 300, 512, 800, 1024)))
        found += [shape] * (1e5 < shape.work < 1.5e9)
    while len(found) < _LINEAR + _CONVOLUTIONS:
        count, inputs = draw.choice((1, 2, 4, 8, 16, 32, 64)), draw.choice((2, 3, 8, 16, 24, 32, 64, 96, 128))
        outputs, height = draw.choice((8, 12, 16, 32, 48, 64, 128, 256)), draw.choice((7, 8, 14, 16, 20, 28))
        kernel = draw.choice((1, 3, 3, 5)), draw.choice((1, 3, 3, 5))
        stride, padding = draw.choice((1, 1, 1, 2)), draw.choice((0, 1))
        image = height, draw.choice((height, height + 5, 2 * height))
        shape = Shape(count, inputs, outputs, image, kernel, stride, padding)
        # the backward of torch 2.13 writes beyond its memory for few channels and windows of one pixel
        is_safe = kernel != (1, 1) or stride == 1 or inputs >= 16
        found += [shape] * (is_safe and 1e5 < shape.work < 1.5e9)
    return found


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per shape, which measures all densities and both passes."""
    return {
        f"cells/{part}/{shape.name}": partial(_measure_shape, part, shape, quick)
        for part, members in shapes().items()
        for shape in (members[::9] if quick else members)
    }


def _measure_shape(part: str, shape: Shape, quick: bool) -> list[Row]:
    """Rows of one job: times of both layers at all densities and in both passes."""
    hb.keep_memory()
    return [
        {"part": part, "layer": shape.name, **row}
        for density in (DENSITIES[::4] if quick else DENSITIES)
        for row in _measure_cell(shape, density, quick)
    ]


def _measure_cell(shape: Shape, density: float, quick: bool) -> list[Row]:
    """Times of both layers in inference and training, or one row with an error if the outputs differ."""
    torch.manual_seed(0)
    dense, spikes = shape.layer(), shape.spikes(density)
    ours = hb.events.adopt(copy.deepcopy(dense))
    with torch.no_grad():
        expected = dense(spikes)
        if not torch.allclose(ours(spikes), expected, rtol=1e-3, atol=1e-3):
            return [{"density": density, "contender": "hibana", "error": "outputs differ"}]
    results = []
    for name, call in (
        ("inference", inference),
        ("training", partial(training, gradient=torch.randn_like(expected))),
    ):
        seconds = _median_times({"torch": call(dense, spikes), "hibana": call(ours, spikes)}, quick)
        for contender, median in seconds.items():
            said = "" if contender == "torch" else ours.explain()
            row = {"density": density, "pass": name, "contender": contender, "said": said}
            results.append({**row, "ms": round(median * 1e3, 5)})
    return results


def _median_times(calls: dict[str, Callable[[], None]], quick: bool) -> dict[str, float]:
    """Median seconds of one call of each contender; the smallest of several, while hibana is slower."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in calls.values():
        call()  # may compile kernels
    start = clock()
    calls["torch"]()
    count = max(1, min(50, int(_MIN_TIMED_SECONDS / max(clock() - start, 1e-7))))
    repeated = {contender: partial(_repeat, call, count) for contender, call in calls.items()}
    medians = dict.fromkeys(calls, float("inf"))
    for _ in range(1 if quick else _ATTEMPTS):
        budget, fewest = (0.0, 1) if quick else (0.15, 7)
        times = measure.rounds(repeated, budget_s=budget, min_rounds=fewest, stretch_s=2e-3, clock=clock)
        for contender, seconds in times.items():
            medians[contender] = min(medians[contender], statistics.median(seconds) / count)
        if medians["hibana"] <= LIMIT * medians["torch"]:
            break
    return medians


def _repeat(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: for each part, how many configurations are slower than the limit, and a table."""
    for part in dict.fromkeys(row["part"] for row in rows):
        chosen = [row for row in rows if row["part"] == part and "ms" in row]
        groups = grouped(chosen, "layer", "pass", "density")
        ratios = {
            key: group["hibana"]["ms"] / group["torch"]["ms"]
            for key, group in groups.items()
            if {"hibana", "torch"} <= group.keys()
        }
        slower = sum(ratio > LIMIT for ratio in ratios.values())
        yield (
            f'**{part}**: median time in mode `"auto"` divided by torch\'s. {slower} of {len(ratios)} '
            f"configurations ({slower / max(1, len(ratios)):.1%}) take more than {LIMIT:g} times torch's "
            f"time; {SHARE:.0%} may.\n"
        )
        densities = sorted({key[-1] for key in ratios})
        lines = [
            [*line, *(number(ratios.get((*line, density))) for density in densities)]
            for line in dict.fromkeys(key[:-1] for key in ratios)
        ]
        yield from table(["layer", "pass", *(f"{density:.0%}" for density in densities)], lines)
