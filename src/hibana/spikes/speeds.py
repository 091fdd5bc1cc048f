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

from hibana.runtime import files
from hibana.runtime.build import kept_in
from hibana.runtime.threads import alone

__all__ = ["YARDSTICK", "Call", "Way", "fixed", "numbers", "random_bits", "speed", "waited_for"]

RUNS = 4
"""Of a burst, of which the first does not count."""
AGREED = 2
"""Bursts that come to the same: some other work on the machine slows one way by half for tens of
milliseconds, the yardstick beside it less."""
ALIKE = 1.05
"""How many times as long as the best it takes where it comes to the same."""
BURSTS = 10
"""At most."""
CALM = 1.12
"""How many times as long as it was ever met the yardstick takes where no other work slows it."""
ROUNDS = 2
"""Threads that measure, one after the other: where the memory of one lies may slow all its bursts by a third,
and two bursts that other work meets may come to the same."""
ROOM = 1 << 23
"""Bytes that all results of a way fit in."""
BETWEEN = 4096 + 64
"""Bytes by which they lie elsewhere in each burst: a page, and a line of the cache."""
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
    if way is YARDSTICK:
        return _known(way)
    beside = _known(way)  # first, for it may put the yardstick right
    return beside * _known(YARDSTICK)


def _known(way: Way) -> float:
    """The same beside the yardstick, of which it is how many times as long as reckoned that takes."""
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
    name = _name(way)
    data = files.read(_path(folder, name))
    found = None if data is None else _unpacked(data, name)
    if found is None:
        found = _times(way, _measured(way))
        if way is not YARDSTICK:
            found /= _known(YARDSTICK)
        _write(folder, name, found)
    return found


def _times(way: Way, seconds: float) -> float:
    """How many times as long as reckoned so many `seconds` are."""
    return min(max(seconds / way.reckoned, LEAST), MOST)


def _name(way: Way) -> str:
    """A way's, with all that its speed depends on."""
    return f"{way.name}, {way.reckoned!r} s" + ("" if way is YARDSTICK else f", beside {_name(YARDSTICK)}")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:40]}.speed"


def _unpacked(data: bytes, name: str) -> float | None:
    """What a file says; None if it is damaged, or of something else."""
    try:
        said = json.loads(data)
        found = float(said["times"])
        return found if said["of"] == name and LEAST / MOST <= found <= MOST / LEAST else None
    except (ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, name: str, found: float) -> None:
    try:
        files.write(_path(folder, name), json.dumps({"of": name, "times": found}).encode())
    except OSError:
        return  # said where kernels can't be kept; the next process measures again


def _measured(way: Way) -> float:
    """Seconds that the piece of `way` takes one thread, while nothing else slows it."""
    piece = way.piece()
    if way is YARDSTICK:
        return min(alone(lambda: _best(piece)[0]) for _ in range(ROUNDS))
    usual = YARDSTICK.reckoned * _known(YARDSTICK)
    yardstick = YARDSTICK.piece()
    # once for what the way has left in the cache
    rounds = [alone(lambda: _best(piece, yardstick, yardstick, last=CALM * usual)) for _ in range(ROUNDS)]
    best: list[float] = [min(each) for each in zip(*rounds, strict=True)]
    taken, _, beside = best
    if beside < usual:
        _met_faster(beside)
    return taken / beside * min(beside, usual)


def _met_faster(seconds: float) -> None:
    """The yardstick was first met in a slow moment, in which ways are compared worse."""
    folder = kept_in()
    _KNOWN[YARDSTICK.name] = _times(YARDSTICK, seconds)
    if folder is not None:
        _write(folder, _name(YARDSTICK), _KNOWN[YARDSTICK.name])


def _best(*calls: Call, last: float = math.inf) -> list[float]:
    """What each call takes at best: of bursts, until so many are AGREED about the first call.

    And until the last call took no longer than `last`: all is slow for a moment, some more than others. What
    calls give lies elsewhere in each burst: some places of two tensors in memory are slow ones.
    """
    kept, bursts = [_above_freed_memory()], list[list[float]]()
    while True:
        bursts.append(_burst(*calls))
        best = [min(taken) for taken in zip(*bursts, strict=True)]
        agreed = sum(first <= ALIKE * best[0] for first, *_ in bursts)
        if (agreed >= AGREED and best[-1] <= last) or len(bursts) >= BURSTS:
            return best
        kept.append(_touched(BETWEEN))


def _above_freed_memory() -> Tensor:
    """What keeps the allocator from giving back what lies below, in which results will lie.

    Else it is chance whether each is written to fresh pages, which takes a third longer.
    """
    _touched(2 * ROOM)  # of which it learns that so much is asked for
    freed, kept = _touched(ROOM), _touched(1)
    del freed
    return kept


def _touched(size: int) -> Tensor:
    """So many bytes."""
    return torch.zeros(size, dtype=torch.uint8, device="cpu")


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
