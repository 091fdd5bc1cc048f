"""Decides which products of a layer are computed per spike and which by torch.

The candidate with the shorter estimate is used (:mod:`hibana.spikes.costs`). Estimates depend on no clock,
cache file or load of the machine: two runs with the same seed agree bit for bit. :func:`hibana.tune` times
the candidates of a product on request. Its times are stored in this process, and replace the estimates for
products of these sizes and densities.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch

from hibana.runtime.available import unavailable_reason
from hibana.spikes.costs import Key, estimate

__all__ = ["ALL", "Call", "Choice", "Key", "choose", "is_promising", "is_tuning", "restricts_gradient"]
__all__ += ["tuning"]

Call = Callable[[], object]

LOOK_SHARE = 0.15
"""Most of torch's time that may be lost to sample the density of an input that torch then multiplies."""
ROUNDS = 6
"""Number of times that :func:`hibana.tune` times each candidate; the shortest time counts."""


class Choice(NamedTuple):
    """The products of a call that are computed per spike; torch computes the others."""

    forward: bool = True
    weights: bool | None = True
    """Whether the weight gradient is computed per spike; None if the weights get no gradient."""
    times: str = ""
    """Text with the times measured by :func:`hibana.tune`; empty without it."""

    @property
    def any(self) -> bool:
        """Whether the forward or the weight gradient is computed per spike."""
        return self.forward or bool(self.weights)

    def dense_reason(self, density: float) -> str:
        """Why torch computes all products of an input of this `density`."""
        reason = self.times or "torch is faster at these sizes and this density"
        return f"{density:.0%} of the input spiked; {reason}"


ALL = Choice()
"""All products per spike: the choice of ``mode="events"``."""

_LOWER_BOUNDS = [2.0 ** (-k / 2) for k in range(1, 17)]
"""Lower bounds of the intervals of :func:`density_bucket`."""
_TUNED: dict[Key, tuple[float, ...]] = {}
"""Shortest seconds of each candidate of a product, measured by :func:`hibana.tune`."""
_TUNED_SIZES: set[Key] = set()
"""The keys of these times, with the defaults of density, planes and learning."""
_tuning = False


@contextmanager
def tuning() -> Iterator[None]:
    """Calls in the ``with`` block time the candidates of their products; later calls use the faster one."""
    global _tuning
    before, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = before


def is_tuning() -> bool:
    """Whether the code runs within :func:`tuning`."""
    return _tuning


def density_bucket(density: float) -> int:
    """The index of the interval that contains `density`: 0 for [1/sqrt(2), 1], up to 16.

    Each interval spans a factor of sqrt(2); number 16 reaches to zero.
    """
    index = 0
    while index < 16 and density < _LOWER_BOUNDS[index]:
        index += 1
    return index


def is_promising(key: Key, learning: bool) -> bool:
    """Whether to look at the density of an input: whether candidates per spike can be faster.

    If torch takes little time, they must be faster at every density, since the look would be lost otherwise.
    Without native code nothing can be estimated, and the answer is true: the layer then states the reason.

    Args:
        key: kind and sizes of the product; its field `learning` is not read.
        learning: whether the weights get a gradient.
    """
    return (
        is_tuning()
        or _is_tuned(key)
        or bool(unavailable_reason())
        or _is_promising(key, learning, torch.get_num_threads())
    )


def _is_tuned(key: Key) -> bool:
    """Whether times of products of these sizes are used."""
    return bool(_TUNED_SIZES) and key in _TUNED_SIZES and not torch.are_deterministic_algorithms_enabled()


@lru_cache(maxsize=1024)
def _is_promising(key: Key, learning: bool, threads: int) -> bool:
    """:func:`is_promising` by the estimates."""
    key = key._replace(learning=learning)
    costs = estimate(key, threads)
    dense = costs.dense_forward + 2 * costs.dense_gradient * learning
    return _estimated(key, 1.0 if LOOK_SHARE * dense < costs.look else 0.0, threads).any


def _estimated(key: Key, ones: float, threads: int) -> Choice:
    """The choice by the estimates."""
    costs = estimate(key, threads)
    forward, gradient = costs.forward.seconds(ones), costs.weights.seconds(ones)
    return _fastest(key.learning, forward, costs.dense_forward, gradient, costs.dense_gradient, costs.scan)


def _fastest(
    learning: bool, forward: float, dense_forward: float, gradient: float, dense_gradient: float, scan: float
) -> Choice:
    """The choice for these seconds of the candidates; `scan` is needed by those per spike."""
    if not learning:
        return Choice(forward + scan < dense_forward, None)
    per_spike = min(forward, dense_forward) + min(gradient, dense_gradient) + scan
    if per_spike >= dense_forward + dense_gradient:
        return Choice(False, False)
    return Choice(forward < dense_forward, gradient < dense_gradient)


def choose(key: Key, ones: float, calls: Callable[[], Sequence[Call]] | None = None) -> Choice:
    """Whether a layer's forward and weight gradient are computed per spike or by torch.

    Args:
        key: kind and sizes of the product.
        ones: the fraction of bits that are set, summed over all bit planes of the input.
        calls: returns the candidates to time, in this order: the forward per spike and by torch; if weights
            learn, their gradient per spike and by torch; the packing of the input.
    """
    times = _times(key, ones / key.planes, calls)
    if times is None:
        return _estimated(key, ones, torch.get_num_threads())
    forward, dense_forward = times[:2]
    gradient, dense_gradient = times[2:4] if key.learning else (0.0, 0.0)
    description = f"forward takes {forward / dense_forward:.2f} of torch's time"
    if key.learning:
        description += f" and the weights' gradient {gradient / dense_gradient:.2f}"
    choice = _fastest(key.learning, forward, dense_forward, gradient, dense_gradient, times[-1])
    return choice._replace(times=description)


def restricts_gradient(choice: Choice, key: Key, density: float, calls: Callable[[], Sequence[Call]]) -> bool:
    """Whether the input gradient is computed only where the surrogate's derivative is not zero.

    Args:
        choice: the products of the forward that are computed per spike; ``ALL`` restricts the gradient too.
        key: sizes of the input gradient, under which its tuned times are stored.
        density: fraction of the inputs that need a gradient.
        calls: returns the two candidates: the restricted gradient per spike, and the full one by torch.
    """
    if choice is ALL:
        return True
    times = _times(key, density, calls)
    if times is None:
        costs = estimate(key, torch.get_num_threads())
        times = costs.input.seconds(density), costs.dense_gradient
    return times[0] < times[1]


def _times(key: Key, density: float, calls: Callable[[], Sequence[Call]] | None) -> tuple[float, ...] | None:
    """Tuned seconds of each candidate of a product, timed now if :func:`is_tuning`; None if not tuned."""
    if not (_TUNED or _tuning) or torch.are_deterministic_algorithms_enabled():
        return None
    key = key._replace(density=density_bucket(density))
    times = _TUNED.get(key)
    if times is None and _tuning and calls is not None:
        times = _TUNED[key] = _timed(calls())
        _TUNED_SIZES.add(key._replace(density=0, planes=1, learning=False))
    return times


@torch.no_grad()
def _timed(calls: Sequence[Call]) -> tuple[float, ...]:
    """The shortest seconds of each of the `calls`, over ROUNDS rounds."""
    shortest = [float("inf")] * len(calls)
    for call in calls:
        call()  # may compile a kernel
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            shortest[index] = min(shortest[index], time.perf_counter() - start)
    return tuple(shortest)
