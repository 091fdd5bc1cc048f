"""Decides which products of a layer are computed per spike and which by torch.

The rule depends on sizes and density alone, not on a clock, a cache or the load of the machine: two runs with
the same seed agree bit for bit. :func:`hibana.tune` times both candidates of a product on request. Its times
are stored in this process, and replace the rule for products of these sizes and densities.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

__all__ = ["ALL", "Call", "Choice", "Key", "choose", "is_tuning", "restricts_gradient", "tuning"]

Call = Callable[[], object]

FORWARD_UP_TO, WEIGHTS_UP_TO, INPUT_UP_TO = 0.6, 0.6, 0.3
"""Densities of bits, summed over all planes, up to which a product of many rows is computed per spike: the
forward, the weight gradient and the input gradient.

Measured time per spike, as a fraction of the dense time, at a density of 0.5: forward 0.34 to 0.72, weight
gradient 0.3 to 0.48, input gradient 0.7 to 1.1 (convolutions of 64 to 128 channels, 784-512-512-10; AMD EPYC,
Zen 3); forward 0.4 to 0.7, weight gradient 0.4 to 0.8 (the same, and linear layers of at least 256 rows;
Intel Xeon with AVX-512, one thread).
"""
FEW_ROWS, MANY_ROWS = 32, 160
"""Rows of a product up to which packing its weights costs more than it saves, and rows from which on the full
densities above apply. Measured with 784 inputs and 8 to 1,024 outputs, as a fraction of the dense time:
forward 0.7 to 1.8 at 32 rows, 0.5 to 1.3 at 64 and 0.3 to 0.8 at 128 (AMD EPYC, Zen 3); forward 0.5 to 1.0
and weight gradient 0.9 to 1.2 at 64 rows, 0.4 to 0.8 and 0.5 to 0.9 at 128 rows (Intel Xeon)."""
FEW_INPUTS = 64
"""Inputs of a sum below which a product is dense, since they do not fill a word of bits. Measured with a 3x3
window over 2 channels: forward 0.9 to 1.4 of the dense time, weight gradient 1.3 to 2.5 (Intel Xeon)."""
FEW_OUTPUTS = 12
"""Outputs below which a convolution is dense. Measured forward, as a fraction of the dense time: 0.6 to 1.3
with 8 channels (up to 7 with 64 x 64 pixels), 0.4 to 0.9 with 12 channels (AMD EPYC, Zen 3)."""
FEW_LINEAR_OUTPUTS, FEW_OUTPUTS_FACTOR = 32, 0.125
"""Outputs below which packing takes most of the time of a linear product, and the factor of the densities
above for such a product. Measured with 512 inputs, 3,200 and 12,800 rows and 10 to 31 outputs, packing
included, as a fraction of the dense time: 0.7 to 1.0 at a density of 4%, 0.9 to 1.3 at 17%, 0.9 to 1.9 at
27% (Intel Xeon, one thread)."""
ROUNDS = 6
"""Number of times that :func:`hibana.tune` times each candidate; the shortest time counts."""


class Key(NamedTuple):
    """Kind and sizes of a product: the argument of the rule, and the key of the table of tuned times."""

    product: str
    """Kind of product, such as ``"linear"`` or ``"convolution input"``."""
    sizes: tuple[object, ...]
    """Further sizes on which the time of a candidate depends, such as a convolution's geometry."""
    rows: int
    """Rows of the product; for a convolution, the number of output pixels of all images."""
    inputs: int
    """Number of inputs of each sum: of a window, or of a row."""
    outputs: int
    density: int = 0
    """Index of the interval of densities: see :func:`density_bucket`."""
    planes: int = 1
    learning: bool = False
    """Whether the weights get a gradient."""


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


def _density_factor(key: Key) -> float:
    """A factor from 0 to 1 for the largest density at which a product is computed per spike; 0 is never."""
    has_few_outputs = key.outputs < FEW_OUTPUTS and key.product.startswith("convolution")
    if key.inputs < FEW_INPUTS or has_few_outputs:
        return 0.0
    factor = min(1.0, max(0.0, (key.rows - FEW_ROWS) / (MANY_ROWS - FEW_ROWS)))
    if key.outputs < FEW_LINEAR_OUTPUTS and key.product == "linear":
        factor *= FEW_OUTPUTS_FACTOR
    return factor


def choose(key: Key, ones: float, calls: Callable[[], Sequence[Call]] | None = None) -> Choice:
    """Whether a layer's forward and weight gradient are computed per spike or by torch.

    Args:
        key: kind and sizes of the product.
        ones: the fraction of bits that are set, summed over all bit planes of the input.
        calls: returns the candidates to time, in this order: the forward per spike and by torch; if weights
            learn, their gradient per spike and by torch; the packing of the input.
    """
    times = _times(key, calls)
    if times is None:
        factor = _density_factor(key)
        weights = ones < factor * WEIGHTS_UP_TO if key.learning else None
        return Choice(ones < factor * FORWARD_UP_TO, weights)
    forward, dense_forward, scan = *times[:2], times[-1]
    description = f"forward takes {forward / dense_forward:.2f} of torch's time"
    if not key.learning:
        return Choice(forward + scan < dense_forward, None, description)
    gradient, dense_gradient = times[2:4]
    description += f" and the weights' gradient {gradient / dense_gradient:.2f}"
    if min(forward, dense_forward) + min(gradient, dense_gradient) + scan >= dense_forward + dense_gradient:
        return Choice(False, False, description)
    return Choice(forward < dense_forward, gradient < dense_gradient, description)


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
    times = _times(key, calls)
    return density < _density_factor(key) * INPUT_UP_TO if times is None else times[0] < times[1]


def _times(key: Key, calls: Callable[[], Sequence[Call]] | None) -> tuple[float, ...] | None:
    """Tuned seconds of each candidate of a product, timed now if :func:`is_tuning`; None if not tuned."""
    if torch.are_deterministic_algorithms_enabled():
        return None
    times = _TUNED.get(key)
    if times is None and _tuning and calls is not None:
        times = _TUNED[key] = _timed(calls())
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
