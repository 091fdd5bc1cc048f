"""120 cells: a linear layer and a convolution in mode "auto" beside torch's, where both are small.

64 or 2,048 rows (of a convolution: pixels) of 16 to 128 channels, at densities of 2 to 100%; the linear layer
multiplies as often as the convolution, whose windows are 3x3. The spikes come from nowhere, as in
:mod:`benchmarks.grid`. Least time of calls in turn; of calls of microseconds, many are timed at once.
"""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import hibana as hb
from benchmarks import measure
from benchmarks.grid import SLOWER, inference, training
from benchmarks.tables import grouped, number, table

__all__ = ["CALL", "jobs", "section"]

Row = dict[str, Any]
DENSITIES = (0.02, 0.05, 0.1, 0.3, 1.0)
CHANNELS = (16, 64, 128)
ROWS = {64: (4, 4, 4), 2048: (8, 16, 16)}
"""Rows of a linear layer; images, their height and width for a convolution."""
CALL = 3e-6
"""Seconds that a call may take longer than torch's, whatever the ratio: Python's own."""
_AT_ONCE = 2e-4
"""Seconds of calls that are timed at once, at least."""


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own: a layer, rows and channels, at all densities and both passes."""
    cells = [(kind, rows, of) for kind in ("linear", "convolution") for rows in ROWS for of in CHANNELS]
    return {
        f"cells/{kind}-{rows}x{of}": partial(_times, kind, rows, of, quick)
        for kind, rows, of in (cells[::6] if quick else cells)
    }


def _times(kind: str, rows: int, channels: int, quick: bool) -> list[Row]:
    hb.keep_memory()
    return [
        row
        for density in (DENSITIES[::4] if quick else DENSITIES)
        for row in _cell(kind, rows, channels, density, quick)
    ]


def _cell(kind: str, rows: int, channels: int, density: float, quick: bool) -> list[Row]:
    """Both layers' times in both passes, if they agree."""
    torch.manual_seed(0)
    images, *sides = ROWS[rows]
    if kind == "linear":
        dense: nn.Module = nn.Linear(9 * channels, channels)
        spikes = (torch.rand(rows, 9 * channels) < density).float()
    else:
        dense = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        spikes = (torch.rand(images, channels, *sides) < density).float()
        spikes = spikes.contiguous(memory_format=torch.channels_last)
    ours = hb.events.adopt(copy.deepcopy(dense))
    about = {"layer": kind, "rows": rows, "channels": channels, "density": density}
    with torch.no_grad():
        wanted = dense(spikes)
        if not torch.allclose(ours(spikes), wanted, rtol=1e-3, atol=1e-3):
            return [{**about, "contender": "hibana", "error": "outputs differ"}]
    found = []
    for name, call in (
        ("inference", inference),
        ("training", partial(training, gradient=torch.randn_like(wanted))),
    ):
        seconds = _least({"torch": call(dense, spikes), "hibana": call(ours, spikes)}, quick)
        said = {"torch": "", "hibana": ours.explain()}
        found += [
            {**about, "pass": name, "contender": who, "said": said[who], "ms": taken * 1e3}
            for who, taken in seconds.items()
        ]
    return found


def _least(calls: dict[str, Callable[[], None]], quick: bool) -> dict[str, float]:
    """Seconds of a call of each; a cell that is slower is measured again before it counts."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for call in calls.values():
        call()  # may compile kernels
    for call in calls.values():
        began = clock()
        call()
    count = max(1, int(_AT_ONCE / max(clock() - began, 1e-7)))
    several = {who: partial(_repeated, call, count) for who, call in calls.items()}
    seconds: dict[str, float] = {}
    for budget, at_least in ((0.0, 1),) if quick else ((0.5, 7), (2.0, 20), (2.0, 20)):
        for who, taken in measure.rounds(several, budget_s=budget, at_least=at_least, clock=clock).items():
            seconds[who] = min(seconds.get(who, float("inf")), min(taken) / count)
        if not _is_slower(seconds):
            break
    return seconds


def _repeated(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def _is_slower(seconds: dict[str, float]) -> bool:
    """Whether hibana's call takes longer, by more than what a call of Python may take."""
    ours, torchs = seconds["hibana"], seconds["torch"]
    return ours > SLOWER * torchs and ours > torchs + CALL


def section(rows: list[Row]) -> Iterator[str]:
    """How many cells are slower, a table of ratios by layer, rows, channels, pass and density."""
    groups = grouped([row for row in rows if "ms" in row], "layer", "rows", "channels", "pass", "density")
    seconds = {
        key: {who: row["ms"] / 1e3 for who, row in group.items()}
        for key, group in groups.items()
        if {"hibana", "torch"} <= group.keys()
    }
    slower = sum(map(_is_slower, seconds.values()))
    beyond = sum(each["hibana"] > SLOWER * each["torch"] for each in seconds.values())
    yield (
        'Small layers in mode `"auto"`: time to torch\'s layer of the same sizes, the least of calls in '
        f"turn; spikes come from nowhere. {beyond} of {len(seconds)} cells take {SLOWER:g} and more of "
        f"torch's time, {slower} of them by more than {CALL * 1e6:g} µs a call. The last column is the "
        "largest difference of the line, in µs a call.\n"
    )
    densities = sorted({key[-1] for key in seconds})
    lines = []
    for line in dict.fromkeys(key[:-1] for key in seconds):
        of = [seconds.get((*line, density)) for density in densities]
        ratios = [number(each["hibana"] / each["torch"] if each else None) for each in of]
        most = max((each["hibana"] - each["torch"]) * 1e6 for each in of if each)
        kind, count, channels, name = line
        lines.append([kind, f"{count:,}", str(channels), name, *ratios, f"{most:+.1f}"])
    head = ["layer", "rows", "channels", "pass", *(f"{density:.0%}" for density in densities), "most, µs"]
    yield from table(head, lines)
