"""Times small linear layers and convolutions of hibana (mode "auto") and of torch in 120 combinations.

A combination has 64 or 2,048 rows (for a convolution: pixels) of 16 to 128 channels, at a density of 2 to
100% spikes. The linear layer has as many multiplications as the 3x3 convolution. The spikes are plain
tensors, about which hibana has recorded nothing in advance. The reported time is the shortest of alternating
calls. Calls of a few microseconds are timed in groups.
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

__all__ = ["CALL_OVERHEAD", "jobs", "section"]

Row = dict[str, Any]
DENSITIES = (0.02, 0.05, 0.1, 0.3, 1.0)
CHANNELS = (16, 64, 128)
ROWS = {64: (4, 4, 4), 2048: (8, 16, 16)}
"""Rows of a linear layer: the number, height and width of images with as many pixels for a convolution."""
CALL_OVERHEAD = 3e-6
"""Seconds that a call may take longer than torch's at any ratio, for the time that Python needs."""
_MIN_TIMED_SECONDS = 2e-4
"""Calls are repeated until one timing takes at least so many seconds."""


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per kind of layer, rows and channels, which measures all densities and both passes."""
    cells = [
        (kind, rows, channels) for kind in ("linear", "convolution") for rows in ROWS for channels in CHANNELS
    ]
    return {
        f"cells/{kind}-{rows}x{channels}": partial(_measure_cells, kind, rows, channels, quick)
        for kind, rows, channels in (cells[::6] if quick else cells)
    }


def _measure_cells(kind: str, rows: int, channels: int, quick: bool) -> list[Row]:
    """Rows of one job: times of both layers at all densities and in both passes."""
    hb.keep_memory()
    return [
        row
        for density in (DENSITIES[::4] if quick else DENSITIES)
        for row in _measure_cell(kind, rows, channels, density, quick)
    ]


def _measure_cell(kind: str, rows: int, channels: int, density: float, quick: bool) -> list[Row]:
    """Times of both layers in inference and training, or one row with an error if the outputs differ."""
    torch.manual_seed(0)
    count, *sides = ROWS[rows]
    if kind == "linear":
        dense: nn.Module = nn.Linear(9 * channels, channels)
        spikes = (torch.rand(rows, 9 * channels) < density).float()
    else:
        dense = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        spikes = (torch.rand(count, channels, *sides) < density).float()
        spikes = spikes.contiguous(memory_format=torch.channels_last)
    ours = hb.events.adopt(copy.deepcopy(dense))
    columns = {"layer": kind, "rows": rows, "channels": channels, "density": density}
    with torch.no_grad():
        expected = dense(spikes)
        if not torch.allclose(ours(spikes), expected, rtol=1e-3, atol=1e-3):
            return [{**columns, "contender": "hibana", "error": "outputs differ"}]
    results = []
    for name, call in (
        ("inference", inference),
        ("training", partial(training, gradient=torch.randn_like(expected))),
    ):
        seconds = _shortest_times({"torch": call(dense, spikes), "hibana": call(ours, spikes)}, quick)
        explanations = {"torch": "", "hibana": ours.explain()}
        results += [
            {
                **columns,
                "pass": name,
                "contender": contender,
                "said": explanations[contender],
                "ms": shortest * 1e3,
            }
            for contender, shortest in seconds.items()
        ]
    return results


def _shortest_times(calls: dict[str, Callable[[], None]], quick: bool) -> dict[str, float]:
    """Shortest seconds of one call of each contender, measured again up to twice if hibana is slower."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for call in calls.values():
        call()  # may compile kernels
    for call in calls.values():
        start = clock()
        call()
    count = max(1, int(_MIN_TIMED_SECONDS / max(clock() - start, 1e-7)))
    repeated_calls = {contender: partial(_repeat, call, count) for contender, call in calls.items()}
    seconds: dict[str, float] = {}
    for budget, min_rounds in ((0.0, 1),) if quick else ((0.5, 7), (2.0, 20), (2.0, 20)):
        for contender, times in measure.rounds(
            repeated_calls, budget_s=budget, min_rounds=min_rounds, clock=clock
        ).items():
            seconds[contender] = min(seconds.get(contender, float("inf")), min(times) / count)
        if not _is_slower(seconds):
            break
    return seconds


def _repeat(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def _is_slower(seconds: dict[str, float]) -> bool:
    """Whether hibana exceeds torch by the ratio :data:`SLOWER` and by :data:`CALL_OVERHEAD` seconds."""
    hibana, dense = seconds["hibana"], seconds["torch"]
    return hibana > SLOWER * dense and hibana > dense + CALL_OVERHEAD


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: how many combinations are slower than torch, and a table of the ratios."""
    groups = grouped([row for row in rows if "ms" in row], "layer", "rows", "channels", "pass", "density")
    seconds = {
        key: {contender: row["ms"] / 1e3 for contender, row in group.items()}
        for key, group in groups.items()
        if {"hibana", "torch"} <= group.keys()
    }
    slower = sum(map(_is_slower, seconds.values()))
    above_ratio = sum(pair["hibana"] > SLOWER * pair["torch"] for pair in seconds.values())
    yield (
        'Time of small layers in mode `"auto"` divided by torch\'s time, each the shortest of alternating '
        f"calls. {above_ratio} of {len(seconds)} combinations take at least {SLOWER:g} times torch's "
        f"time, {slower} of them by more than {CALL_OVERHEAD * 1e6:g} µs per call. The last column is the "
        "largest difference of the row, in µs per call.\n"
    )
    densities = sorted({key[-1] for key in seconds})
    lines = []
    for line in dict.fromkeys(key[:-1] for key in seconds):
        pairs = [seconds.get((*line, density)) for density in densities]
        ratios = [number(pair["hibana"] / pair["torch"] if pair else None) for pair in pairs]
        largest = max((pair["hibana"] - pair["torch"]) * 1e6 for pair in pairs if pair)
        kind, count, channels, name = line
        lines.append([kind, f"{count:,}", str(channels), name, *ratios, f"{largest:+.1f}"])
    head = ["layer", "rows", "channels", "pass", *(f"{density:.0%}" for density in densities), "largest, µs"]
    yield from table(head, lines)
