"""How fast this machine goes each way that a product can go.

A :class:`Way` knows how many seconds it takes by a formula, whose constants were fitted on one machine (AMD
EPYC, Zen 5). Another one takes so many times as long: that factor is measured with one small call, the first
time that it is asked for, and stays in the cache beside the kernels. ``HIBANA_COSTS=fixed``, or no cache,
leaves it 1. It is of processor time of one thread; that more threads speed all ways up alike is assumed.

Ways are compared with one another, and a processor whose neighbours are at work is half as fast for a while
as before: each is measured in turn with one product of matrices, :data:`YARDSTICK`, and takes as many times
as long as that. Nothing else here knows a product.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.native import files
from hibana.native.build import kept_in
from hibana.native.threads import alone

__all__ = ["YARDSTICK", "Call", "Way", "fixed", "numbers", "random_bits", "speed", "waited_for"]

RUNS = 4
"""Of a burst, of which the first does not count."""
AGREED = 3
"""Bursts that come to the same: some other work on the machine slows one way by half for tens of
milliseconds, the yardstick beside it less, and two bursts that it meets may come to the same too."""
ALIKE = 1.05
"""How many times as long as the best it takes where it comes to the same."""
BURSTS = 10
"""At most."""
FITTED = 2
"""Threads."""
LEAST, MOST = 1 / 64, 64.0
"""Factors that a way can have; what is beyond was not measured well."""


Call = Callable[[], object]


class Way(NamedTuple):
    """One way to compute, and a small piece of work by which it is measured."""

    name: str
    reckoned: float
    """Seconds that the piece should take."""
    piece: Callable[[], Call]
    """Makes the call that does it."""


YARDSTICK = Way("yardstick", 1e-4, lambda: partial(torch.mm, numbers(256, 256), numbers(256, 256)))
"""What all others are measured beside."""

_KNOWN: dict[str, float] = {}
_MEASURING = threading.RLock()


def speed(way: Way) -> float:
    """How many times as long as reckoned this machine takes `way`."""
    if fixed():
        return 1.0
    if way.name not in _KNOWN:
        with _MEASURING:  # two at once would slow one another
            if way.name not in _KNOWN:
                _KNOWN[way.name] = _found(way)
    return _KNOWN[way.name]


def waited_for(threads: int) -> float:
    """How many times a second counts that one of so many threads computes alone: the others wait meanwhile.

    All is reckoned as if one thread did it, and they shared. What comes before and after kernels is one
    thread's in truth, and was fitted with up to :data:`FITTED`.
    """
    return 1.0 if fixed() else max(1.0, threads / FITTED)


def fixed() -> bool:
    """Whether nothing is measured."""
    return os.environ.get("HIBANA_COSTS") == "fixed" or kept_in() is None


def _found(way: Way) -> float:
    folder = kept_in()
    if folder is None:
        return 1.0
    name = f"{way.name}, {way.reckoned!r} s"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:40]}.speed"
    data = files.read(path)
    found = None if data is None else _unpacked(data, name)
    if found is None:
        found = min(max(_measured(way) / way.reckoned, LEAST), MOST)
        _write(path, name, found)
    return found


def _unpacked(data: bytes, name: str) -> float | None:
    """What a file says; None if it is damaged, or of something else."""
    try:
        said = json.loads(data)
        found = float(said["times"])
        return found if said["of"] == name and LEAST <= found <= MOST else None
    except (ValueError, KeyError, TypeError):
        return None


def _write(path: Path, name: str, found: float) -> None:
    try:
        files.write(path, json.dumps({"of": name, "times": found}).encode())
    except OSError:
        return  # said where kernels can't be kept; the next process measures again


def _measured(way: Way) -> float:
    """Seconds that the piece of `way` takes one thread, while nothing else slows it."""
    if way is YARDSTICK:
        return alone(lambda: _best(way.piece())[0])
    usual = YARDSTICK.reckoned * speed(YARDSTICK)
    return alone(lambda: _beside(way, usual)) * usual


def _beside(way: Way, usual: float) -> float:
    """How many times as long as the yardstick, which usually takes so long, `way` takes this thread."""
    yardstick = YARDSTICK.piece()
    # once for what the way has left in the cache
    taken, _, beside = _best(way.piece(), yardstick, yardstick, last=usual)
    return taken / beside


def _best(*calls: Call, last: float = math.inf) -> list[float]:
    """What each call takes at best: of bursts, until so many are AGREED about the first call.

    And until the `last` call took no longer than that: all is slow for a moment, some more than others.
    """
    bursts = list[list[float]]()
    while True:
        bursts.append(_burst(*calls))
        best = [min(taken) for taken in zip(*bursts, strict=True)]
        agreed = sum(first <= ALIKE * best[0] for first, *_ in bursts)
        if (agreed >= AGREED and best[-1] <= ALIKE * last) or len(bursts) >= BURSTS:
            return best


@torch.no_grad()
def _burst(*calls: Call) -> list[float]:
    """What each call takes at best, in turn, a few times."""
    runs = []
    for _ in range(RUNS):
        taken = []
        for call in calls:
            began = time.thread_time()
            call()
            taken.append(time.thread_time() - began)
        runs.append(taken)
    return [min(taken) for taken in zip(*runs[1:], strict=True)]


def numbers(*shape: int) -> Tensor:
    """Some numbers, of `shape`: always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")


def random_bits(rows: int, inputs: int, density: float) -> Tensor:
    """``[rows, words]`` bits of which `density`, a power of a half, are set; none beyond the inputs."""
    words, rest = -(-inputs // 64), inputs % 64
    bits = torch.full((rows, words), -1, dtype=torch.int64, device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    made = partial(torch.randint, generator=generator, dtype=torch.int64, device="cpu")
    while density < 1:
        bits &= made(-(1 << 63), (1 << 63) - 1, bits.shape)
        density *= 2
    if rest:
        bits[:, -1] &= (1 << rest) - 1
    return bits
