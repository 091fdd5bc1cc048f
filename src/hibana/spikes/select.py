"""Chooses between kernels per spike and torch's dense product by timing both on the first call of a shape.

A product of spikes has two candidates, the kernels of this package and torch's dense product. At the first
call of a *key* (sizes, interval of densities, threads) both run on the call's own tensors, in turn, and the
least time of each is kept: in the process, and on disk beside the compiled kernels. The choice is made before
the call returns, so that a recomputation in the backward makes the same one. While other programs use the
cores that a timing needs, nothing is timed: the prior decides, and after some calls the machine is looked at
again.

With ``torch.use_deterministic_algorithms``, ``HIBANA_SELECT=prior`` or no folder for kernels, nothing is
timed: a product is computed per spike up to a density that depends on its sizes alone.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hibana.compiler.ambient import saved_tensor_hooks
from hibana.compiler.shared import Bounded
from hibana.runtime import files
from hibana.runtime.build import kept_in

__all__ = [
    "ALL",
    "Call",
    "Choice",
    "Key",
    "bucket",
    "choose",
    "convolution_prior",
    "density_bucket",
    "faster",
    "input_gradient",
    "known",
    "linear_prior",
    "priors_only",
]

Call = Callable[[], object]

FORWARD_UP_TO, WEIGHTS_UP_TO, INPUT_UP_TO = 0.6, 0.6, 0.3
"""Priors: densities of bits, over all planes, up to which an untimed product of many rows is computed per
spike.

Of the dense time at a density of 0.5: sums 0.34 to 0.72, gradients of weights 0.3 to 0.48, of inputs 0.7 to
1.1 (convolutions of 64 to 128 channels, 784-512-512-10; AMD EPYC, Zen 3).
"""
FEW_ROWS, MANY_ROWS = 32, 160
"""Rows of a product up to which packing its weights costs more than is saved, and from which on the priors
hold in full: with 784 inputs and 8 to 1,024 outputs sums take 0.7 to 1.8 of the dense time at 32 rows, 0.5 to
1.3 at 64 and 0.3 to 0.8 at 128 (AMD EPYC, Zen 3)."""
FEW_OUTPUTS = 12
"""Output channels below which an untimed convolution is dense: with 8 sums take 0.6 to 1.3 of the dense time,
of 64 x 64 pixels up to 7, with 12 0.4 to 0.9 (AMD EPYC, Zen 3)."""
OVERHEAD = 4e-5
"""Seconds that a call per spike spends in Python more than torch's: a linear layer on an AMD EPYC (Zen 3)."""
ROUNDS = 6
"""Timed calls of each candidate, at most."""
LONG, ENOUGH = 0.01, 0.1
"""Seconds from which on a first call counts, and from which on no further round is timed."""
CLEAR = 1.3
"""Ratio of two least times from which on no further round is needed."""
LOOKS, PAUSE = 3, 0.002
"""How often, and after how many seconds, a machine that seems busy is looked at again before the prior
decides."""
AGAIN = 16
"""Calls of a product on a busy machine, decided by the prior, after which it is asked again whether the
machine is busy; twice as many after each time that it still is."""
CANDIDATES = 3
"""Version of what is timed, raised when a candidate changes: times of other versions are not read."""
REMEMBERED = 4096
"""Keys that a process remembers."""


class Key(NamedTuple):
    """Everything that the times of a product's candidates depend on; its ``repr`` names the file on disk."""

    product: str
    sizes: tuple[object, ...]
    threads: int
    density: int = 0
    """The interval of densities: see :func:`density_bucket`."""
    planes: int = 1
    learning: bool = False
    """Whether the weights get a gradient."""
    scanned: bool = False
    """Whether bits are made of numbers."""


class Choice(NamedTuple):
    """Which products of a call are computed per spike."""

    forward: bool = True
    weights: bool | None = True
    """None where the weights get no gradient."""
    said: str = ""
    """The times that decided, for :func:`hibana.explain`."""
    timed: bool = False
    """Whether the input's gradient is to be timed too; else its prior decides."""
    provisional: bool = False
    """Whether the prior decided because the machine was busy."""

    @property
    def any(self) -> bool:
        """Whether any product is computed per spike."""
        return self.forward or bool(self.weights)

    def refused(self, density: float) -> str:
        """Why none is."""
        return f"{density:.0%} of the input spiked; events would take {self.said}"


ALL = Choice()
"""Everything per spike: of ``mode="events"``."""

_LOWER = [2.0 ** (-k / 2) for k in range(1, 17)]
"""Where intervals of densities end."""
_CHOICES: Bounded[Key, Choice] = Bounded(REMEMBERED)
_TIMES: Bounded[Key, tuple[float, ...]] = Bounded(REMEMBERED)
_DENSE: Bounded[Key, tuple[float, ...]] = Bounded(REMEMBERED)
"""Of torch's candidates alone, which no density changes."""
_TIMING = threading.RLock()


class _Wait:
    """How many more calls of a key the prior decides, after which the machine is looked at again."""

    def __init__(self, pinned: bool) -> None:
        self.left = self.calls = AGAIN
        self.pinned = pinned

    def is_over(self) -> bool:
        """Counts a call; never true again once one was within hooks of saved tensors.

        Those are a checkpoint's: its recomputation has to choose as its forward did.
        """
        self.pinned = self.pinned or saved_tensor_hooks() is not None
        self.left -= 1
        if self.pinned or self.left > 0:
            return False
        self.left = self.calls = 2 * self.calls
        return True


_WAITS: Bounded[Key, _Wait] = Bounded(REMEMBERED)
"""Of keys that met a busy machine."""


def priors_only() -> bool:
    """Whether nothing is timed, so that no result depends on a clock."""
    return (
        os.environ.get("HIBANA_SELECT") == "prior"
        or torch.are_deterministic_algorithms_enabled()
        or kept_in() is None
    )


def bucket(count: int) -> int:
    """`count` rounded down to an eighth of its power of two: counts that share a choice."""
    step = max(1, 1 << count.bit_length() >> 4)
    return count // step * step


def density_bucket(density: float) -> int:
    """The interval of `density`: 0 from 1/sqrt(2) to 1, each a factor sqrt(2) wide, up to 16."""
    number = 0
    while number < 16 and density < _LOWER[number]:
        number += 1
    return number


def known(key: Key) -> Choice | None:
    """What was chosen for `key` in this process; None too if the machine should be looked at again."""
    found = _CHOICES.get(key)
    return None if found is not None and found.provisional and _looks_again(key) else found


def _looks_again(key: Key) -> bool:
    """Whether a key that met a busy machine has waited long enough; then it is as if never seen."""
    wait = _WAITS.get(key)
    if wait is None or not wait.is_over():
        return False
    _TIMES.pop(key, None)
    _CHOICES.pop(key, None)
    return True


def linear_prior(rows: int) -> float:
    """What the priors' densities are multiplied by, 0 to 1, for a product of so many `rows`."""
    return min(1.0, max(0.0, (rows - FEW_ROWS) / (MANY_ROWS - FEW_ROWS)))


def convolution_prior(rows: int, outputs: int) -> float:
    """What the priors' densities are multiplied by for a convolution: `rows` are the output pixels of all
    images, `outputs` the output channels.
    """
    return 0.0 if outputs < FEW_OUTPUTS else linear_prior(rows)


def choose(key: Key, ones: float, calls: Callable[[], Sequence[Call]], prior: float) -> Choice:
    """Which products are computed per spike.

    Args:
        key: of the call.
        ones: density of bits, over all planes.
        calls: makes the candidates: the sums per spike and by torch; if weights learn, their gradient per
            spike and by torch; if numbers are scanned, last what makes bits of them.
        prior: what the priors' densities are multiplied by, where nothing is timed.
    """
    found = None if priors_only() else known(key)
    if found is None:
        found = _chosen(key, ones, calls, prior)
        if found.timed:
            _CHOICES[key] = found
    return found


def _chosen(key: Key, ones: float, calls: Callable[[], Sequence[Call]], prior: float) -> Choice:
    """The choice by the times of the candidates; by the prior where nothing may be timed."""
    if priors_only():
        return _by_prior(key, ones, prior)
    times = _times(key, calls)
    if not times:
        return _by_prior(key, ones, prior)._replace(timed=True, provisional=True)
    scan = OVERHEAD + (times[-1] if key.scanned else 0.0)
    sums, dense_sums = times[:2]
    said = f"forward {sums / dense_sums:.2f}"
    if not key.learning:
        return Choice(sums + scan < dense_sums, None, f"{said} of the dense time", True)
    weights, dense_weights = times[2:4]
    said += f" and weights' gradient {weights / dense_weights:.2f} of the dense time"
    forward, of_weights = sums < dense_sums, weights < dense_weights
    if min(sums, dense_sums) + min(weights, dense_weights) + scan >= dense_sums + dense_weights:
        forward = of_weights = False
    return Choice(forward, of_weights, said, True)


def _by_prior(key: Key, ones: float, prior: float) -> Choice:
    weights = ones < prior * WEIGHTS_UP_TO if key.learning else None
    forward = ones < prior * FORWARD_UP_TO
    return Choice(forward, weights, "by the prior" if forward or weights else "longer, by the prior")


def input_gradient(
    choice: Choice, key: Key, ones: float, calls: Callable[[], Sequence[Call]], prior: float
) -> bool:
    """Whether the input's gradient is computed only where a surrogate lets it through.

    Args:
        choice: of the forward.
        key: of the gradient.
        ones: density of where it is wanted.
        calls: makes the two candidates: there alone, and everywhere by torch.
        prior: as in :func:`choose`.
    """
    return choice is ALL or faster(key, calls, ones < prior * INPUT_UP_TO)


def faster(key: Key, calls: Callable[[], Sequence[Call]], prior: bool) -> bool:
    """Whether the first of two candidates took less time than the second; `prior`, where nothing is timed."""
    if priors_only():
        return prior
    times = _times(key, calls)
    return times[0] < times[1] if times else prior


def _times(key: Key, calls: Callable[[], Sequence[Call]]) -> tuple[float, ...]:
    """The least seconds of the candidates that `calls` makes: per spike and by torch in turn.

    Empty where the machine was busy when it was last looked at.
    """
    found, dense = _TIMES.get(key), key._replace(density=0, planes=1, scanned=False)
    if found is None or (not found and _looks_again(key)):
        with _TIMING:  # two threads that time slow one another down
            found = _TIMES.get(key) or _read(key)
            if found is None:
                found = () if _is_busy(key.threads) else _timed(calls(), _DENSE.get(dense, ()))
                found = () if _is_busy(key.threads) else found  # by now
                if found:
                    _write(key, found)
            _TIMES[key] = found
            if found:
                _DENSE[dense] = found[1::2]
            elif key not in _WAITS:
                _WAITS[key] = _Wait(pinned=saved_tensor_hooks() is not None)
    return found


def _is_busy(threads: int) -> bool:
    """Whether other programs use cores that so many threads need, where the system tells (Linux)."""
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE)
        if _others() + threads <= (os.cpu_count() or 1):
            return False
    return True


def _others() -> int:
    """How many threads of other programs run or wait for a core now.

    Those of this process are no others: torch's wait for work by spinning.
    """
    try:
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0])
        return max(0, running - sum(_runs(thread) for thread in Path("/proc/self/task").iterdir()))
    except (OSError, IndexError, ValueError):
        return 0  # not Linux


def _runs(thread: Path) -> bool:
    """Whether a `thread`, a folder of Linux's, runs or waits for a core; False if it has ended."""
    try:
        return (thread / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[
            0
        ] == "R"
    except OSError:
        return False


@torch.no_grad()
def _timed(calls: Sequence[Call], dense: Sequence[float]) -> tuple[float, ...]:
    """What the candidates take, of which torch's took so many seconds before, if that is known."""
    for call in calls[::2]:
        call()  # which may compile it
    least = [float("inf")] * len(calls)
    least[1::2] = dense or least[1::2]
    spent = 0.0
    for number in range(ROUNDS):
        for which, call in enumerate(calls):
            if number == 0 and which % 2 and dense:
                continue
            seconds = _seconds(call)
            if number == 0 and which % 2 and seconds < LONG:
                seconds = _seconds(call)  # the first also prepares
            least[which] = min(least[which], seconds)
            spent += seconds
        pairs = zip(least[::2], least[1::2], strict=False)
        if spent > ENOUGH or all(max(pair) > CLEAR * min(pair) for pair in pairs):
            break
    return tuple(least)


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _path(key: Key) -> Path | None:
    folder = kept_in()
    if folder is None:
        return None
    about = f"{CANDIDATES} {key!r}"
    return folder / f"{hashlib.sha256(about.encode()).hexdigest()[:40]}.times"


def _read(key: Key) -> tuple[float, ...] | None:
    """What a file says of `key`; None if there is none, or it is damaged or of something else."""
    path = _path(key)
    data = None if path is None else files.read(path)
    if data is None:
        return None
    try:
        said = json.loads(data)
        found = tuple(float(each) for each in said["seconds"])
        return found if said["key"] == repr(key) and found and min(found) > 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def _write(key: Key, seconds: tuple[float, ...]) -> None:
    path = _path(key)
    if path is None:
        return
    try:
        files.write(path, json.dumps({"key": repr(key), "seconds": seconds}).encode())
    except OSError:
        return  # said where kernels can't be kept; the next process times again
