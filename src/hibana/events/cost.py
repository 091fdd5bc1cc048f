"""What the products of a layer take on this machine, densely and by events: measured once, and remembered.

A layer in mode ``"auto"`` asks here. With ``HIBANA_COSTS=measured``, sizes that are met for the first time on
a machine are measured, for some tens of milliseconds, on random bits; what is found stays in the cache beside
the kernels. Without that, or without a cache, layers keep to a rule that knows no machine. Nothing here knows
a layer.
"""

import hashlib
import json
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.native import files
from hibana.native.build import kept_in

__all__ = [
    "ALL",
    "DENSITIES",
    "Choice",
    "Costs",
    "Product",
    "choice",
    "chosen",
    "costs_of",
    "measures",
    "random_bits",
    "timed",
]

DENSITIES = (1 / 64, 1 / 16, 1 / 4, 1 / 2)
"""Of bits that are set, at which events are timed."""
MARGIN = 0.75
"""Events are chosen where they should take less than this part of the dense product's time."""
LOOK = 8e-4
"""Seconds of torch's beside which it does not count that an input is looked at."""
OVERHEAD = 5e-5
"""Seconds that a product by events takes before and after its kernel, more than torch's."""
LEAST = 1e-6
"""Seconds that no product takes less than."""
RUNS = 4
"""Of which the first does not count."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Product:
    """Seconds that one product takes."""

    dense: float
    events: tuple[float, ...]
    """At each of :data:`DENSITIES`."""

    def ratio(self, density: float, planes: int = 1) -> float:
        """Time of events at this `density` of bits, on lines between those timed, to the dense product's."""
        right = min(max(1, bisect_left(DENSITIES, density)), len(DENSITIES) - 1)
        low, high = DENSITIES[right - 1], DENSITIES[right]
        part = (density - low) / (high - low)
        taken = self.events[right - 1] * (1 - part) + self.events[right] * part
        if density > high:  # looking up takes what it took, adding more
            taken = max(taken, self.events[right])
        return (max(0.0, taken) * planes + OVERHEAD) / self.dense


@dataclass(frozen=True)
class Costs:
    """What a layer takes."""

    forward: Product
    weights: Product
    """The gradient of the weights."""
    input: Product
    """The gradient of the input, over the density of the support."""
    scan: float
    """Seconds to make bits of numbers."""

    def worth_looking(self, learning: bool) -> bool:
        """Whether events can pay at some density, and looking at the input costs little beside torch."""
        return self._worth[learning]

    @cached_property
    def _worth(self) -> tuple[bool, bool]:
        scan = self.scan / self.forward.dense
        forward = any(self.forward.ratio(density) + scan < MARGIN for density in DENSITIES)
        weights = any(self.weights.ratio(density) < MARGIN for density in DENSITIES)
        seconds = self.forward.dense, self.forward.dense + self.weights.dense
        return forward and seconds[0] > LOOK, (forward or weights) and seconds[1] > LOOK


class Choice(NamedTuple):
    """Which products are done by events."""

    forward: bool = True
    weights: bool = True
    costs: Costs | None = None
    said: str = ""
    """What they should take, for people."""

    @property
    def any(self) -> bool:
        """Whether any product of the call itself is done by events."""
        return self.forward or self.weights

    def refused(self, density: float) -> str:
        """Why none is, for people."""
        return f"{density:.0%} of the input spiked; events would take {self.said}"

    def restricted(self, density: float, most: float = 1.0) -> bool:
        """Whether the input's gradient is computed on this density of it only; unmeasured, up to `most`."""
        if self.costs is None:
            return density <= most
        return self.costs.input.ratio(density) < 1  # nothing had to be looked at for it


ALL = Choice()
"""Everything by events."""


def choice(costs: Costs | None, density: float, planes: int, learns: bool) -> Choice:
    """:func:`chosen` where bits are there; everything by events where nothing is measured."""
    return ALL if costs is None else chosen(costs, density, planes, False, learns)


def chosen(costs: Costs, density: float, planes: int, scanned: bool, learns: bool) -> Choice:
    """What to do by events with so many planes of bits, which have to be `scanned` for or are known.

    Args:
        costs: of the sizes.
        density: of the bits that are set.
        planes: of the input.
        scanned: whether bits have to be made of numbers.
        learns: whether the weights get a gradient.
    """
    forward = costs.forward.ratio(density, planes) + scanned * costs.scan / costs.forward.dense
    weights = costs.weights.ratio(density, planes)
    said = f"forward {forward:.2f}"
    if learns:
        said += f" and weights' gradient {weights:.2f}"
    return Choice(forward < MARGIN, learns and weights < MARGIN, costs, f"{said} of the dense time")


_KNOWN: dict[tuple[Hashable, ...], Costs | None] = {}
_MEASURING = threading.Lock()


def costs_of(key: tuple[Hashable, ...], measured: Callable[[], Costs]) -> Costs | None:
    """The costs of the sizes in `key`, by `measured` if nobody knows them; None where nothing is measured."""
    whole = (*key, torch.get_num_threads())
    if whole not in _KNOWN:
        with _MEASURING:  # two at once would slow one another
            if whole not in _KNOWN:
                _KNOWN[whole] = _found(whole, measured)
    return _KNOWN[whole]


def measures() -> bool:
    """Whether sizes are measured at all."""
    return os.environ.get("HIBANA_COSTS") == "measured" and kept_in() is not None


def _found(key: tuple[Hashable, ...], measured: Callable[[], Costs]) -> Costs | None:
    folder = kept_in() if measures() else None
    if folder is None:
        return None
    name = json.dumps(key)
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:40]}.cost"
    data = files.read(path)
    found = None if data is None else _unpacked(data, name)
    if found is None:
        with torch.no_grad():
            found = measured()
        _write(path, name, found)
    return found


def _unpacked(data: bytes, name: str) -> Costs | None:
    """What a file says; None if it is damaged, or of something else."""
    try:
        said = json.loads(data)
        parts = [
            Product(float(said[part]["dense"]), tuple(map(float, said[part]["events"])))
            for part in ("forward", "weights", "input")
        ]
        costs = Costs(parts[0], parts[1], parts[2], float(said["scan"]))
    except (ValueError, KeyError, TypeError):
        return None
    whole = all(len(part.events) == len(DENSITIES) and part.dense > 0 for part in parts)
    return costs if whole and said.get("of") == name else None


def _write(path: Path, name: str, costs: Costs) -> None:
    try:
        files.write(path, json.dumps({"of": name, **asdict(costs)}).encode())
    except OSError:
        return  # said where kernels can't be kept; the next process measures again


def timed(
    scale: float,
    dense: Sequence[Call],
    events: tuple[Sequence[Call], Sequence[Call], Sequence[Call]],
    once: tuple[Call, Call],
    scan: Call,
) -> Costs:
    """The costs of what takes `scale` times as long as these calls do.

    Args:
        scale: how much more work there is than was timed.
        dense: forward, and the gradients of weights and input.
        events: the same at each of :data:`DENSITIES`.
        once: what forward and weights' gradient do however little work there is.
        scan: what makes bits of numbers.
    """
    calls = [scan, *once, *dense, *(call for calls in events for call in calls)]
    scanning, packing, clearing, *seconds = _least(calls)
    of_dense, rest = seconds[:3], seconds[3:]

    def product(which: int, fixed: float) -> Product:
        taken = rest[which * len(DENSITIES) : (which + 1) * len(DENSITIES)]
        whole = [max(0.0, each - fixed) * scale + fixed for each in taken]
        return Product(max(of_dense[which] * scale, LEAST), tuple(whole))

    return Costs(product(0, packing), product(1, clearing), product(2, 0.0), scanning * scale)


def _least(calls: Sequence[Call]) -> list[float]:
    """The least seconds that each of the `calls` took; in turn, so that caches are as others leave them."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter  # of this thread alone
    best = [float("inf")] * len(calls)
    for run in range(RUNS):
        for i, call in enumerate(calls):
            began = clock()
            call()
            if run:
                best[i] = min(best[i], clock() - began)
    return best


def random_bits(rows: int, inputs: int, density: float, generator: torch.Generator) -> Tensor:
    """``[rows, words]`` bits of which `density`, a power of a half, are set; none beyond the inputs."""
    words, rest = -(-inputs // 64), inputs % 64
    bits = torch.full((rows, words), -1, dtype=torch.int64, device="cpu")
    made = partial(torch.randint, generator=generator, dtype=torch.int64, device="cpu")
    while density < 1:
        bits &= made(-(1 << 63), (1 << 63) - 1, bits.shape)
        density *= 2
    if rest:
        bits[:, -1] &= (1 << rest) - 1
    return bits
