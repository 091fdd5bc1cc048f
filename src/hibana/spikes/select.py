"""Decides which products of a layer are computed per spike and which by torch.

The rule depends on sizes and density alone, never on a clock, a cache or the machine's load: two runs with
the same seed agree bit for bit. :func:`hibana.tune` times both candidates of a product on request; the faster
is kept in a table of the process and replaces the rule for products of these sizes and densities.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

__all__ = [
    "ALL",
    "Call",
    "Choice",
    "Key",
    "choose",
    "is_tuning",
    "prefers_events",
    "restricts_gradient",
    "tuning",
]

Call = Callable[[], object]

FORWARD_UP_TO, WEIGHTS_UP_TO, INPUT_UP_TO = 0.6, 0.6, 0.3
"""Densities of bits, over all planes, up to which a product of many rows is computed per spike.

Of the dense time at a density of 0.5: sums 0.34 to 0.72, gradients of weights 0.3 to 0.48, of inputs 0.7 to
1.1 (convolutions of 64 to 128 channels, 784-512-512-10; AMD EPYC, Zen 3); sums 0.4 to 0.7, gradients of
weights 0.4 to 0.8 (the same and linear layers of 256 rows and more; Intel Xeon with AVX-512, one thread).
"""
FEW_ROWS, MANY_ROWS = 32, 160
"""Rows of a product up to which packing its weights costs more than is saved, and from which on the densities
above hold in full: with 784 inputs and 8 to 1,024 outputs sums take 0.7 to 1.8 of the dense time at 32 rows,
0.5 to 1.3 at 64 and 0.3 to 0.8 at 128 (AMD EPYC, Zen 3); at 64 rows 0.5 to 1.0 and gradients of weights 0.9
to 1.2, at 128 rows 0.4 to 0.8 and 0.5 to 0.9 (Intel Xeon)."""
FEW_INPUTS = 64
"""Inputs of a sum below which a product is dense, since they do not fill a word of bits: sums of a 3x3 window
over 2 channels take 0.9 to 1.4 of the dense time, gradients of weights 1.3 to 2.5 (Intel Xeon)."""
FEW_OUTPUTS, FEW_OUTPUTS_SCANNED = 12, 32
"""Outputs below which a convolution, and any product whose bits are still to be packed, is dense.

With 8 channels sums take 0.6 to 1.3 of the dense time, of 64 x 64 pixels up to 7, with 12 0.4 to 0.9 (AMD
EPYC, Zen 3). Packing takes 0.6 to 0.7 of the dense time with 10 to 16 outputs, 0.25 to 0.45 with 64 (Xeon).
"""
ROUNDS = 6
"""Timed calls of each candidate by :func:`hibana.tune`; the least time counts."""


class Key(NamedTuple):
    """A product: what the rule and the table of tuned choices depend on."""

    product: str
    sizes: tuple[object, ...]
    """All sizes that a candidate's time depends on."""
    rows: int
    """Rows of the product; for a convolution, output pixels of all images."""
    inputs: int
    """Inputs of each sum: of a window, or of a row."""
    outputs: int
    density: int = 0
    """The interval of densities: see :func:`density_bucket`."""
    planes: int = 1
    learning: bool = False
    """Whether the weights get a gradient."""
    scanned: bool = False
    """Whether the bits are packed from numbers for this product."""


class Choice(NamedTuple):
    """Which products of a call are computed per spike."""

    forward: bool = True
    weights: bool | None = True
    """None where the weights get no gradient."""
    times: str = ""
    """The times by which :func:`hibana.tune` decided."""

    @property
    def any(self) -> bool:
        """Whether any product is computed per spike."""
        return self.forward or bool(self.weights)

    def refused(self, density: float) -> str:
        """Why no product is."""
        why = self.times or "torch is faster at these sizes and this density"
        return f"{density:.0%} of the input spiked; {why}"


ALL = Choice()
"""Everything per spike: of ``mode="events"``."""

_LOWER = [2.0 ** (-k / 2) for k in range(1, 17)]
"""Where intervals of densities end."""
_TUNED: dict[Key, tuple[float, ...]] = {}
"""Least seconds of the candidates of a product, by :func:`hibana.tune`."""
_tuning = False


@contextmanager
def tuning() -> Iterator[None]:
    """Has calls within time the candidates of their products, and use the faster from then on."""
    global _tuning
    before, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = before


def is_tuning() -> bool:
    """Whether the candidates of a product are timed now."""
    return _tuning


def density_bucket(density: float) -> int:
    """The interval of `density`: 0 from 1/sqrt(2) to 1, each a factor sqrt(2) wide, up to 16."""
    number = 0
    while number < 16 and density < _LOWER[number]:
        number += 1
    return number


def _by_size(key: Key) -> float:
    """The factor, 0 to 1, on the densities up to which a product of this size is computed per spike."""
    outputs = 0 if key.product.startswith("linear") else FEW_OUTPUTS
    if key.inputs < FEW_INPUTS or key.outputs < (FEW_OUTPUTS_SCANNED if key.scanned else outputs):
        return 0.0
    return min(1.0, max(0.0, (key.rows - FEW_ROWS) / (MANY_ROWS - FEW_ROWS)))


def choose(key: Key, ones: float, calls: Callable[[], Sequence[Call]] | None = None) -> Choice:
    """Which of a layer's sums and weight gradient are computed per spike.

    Args:
        key: of the product.
        ones: density of bits, summed over all planes.
        calls: returns the candidates to time: the sums per spike and by torch; if weights learn, their
            gradient per spike and by torch; if bits are packed from numbers, last the packing.
    """
    times = _times(key, calls)
    if times is None:
        factor = _by_size(key)
        weights = ones < factor * WEIGHTS_UP_TO if key.learning else None
        return Choice(ones < factor * FORWARD_UP_TO, weights)
    scan = times[-1] if key.scanned else 0.0
    sums, dense_sums = times[:2]
    description = f"forward takes {sums / dense_sums:.2f} of torch's time"
    if not key.learning:
        return Choice(sums + scan < dense_sums, None, description)
    weights_, dense_weights = times[2:4]
    description += f" and the weights' gradient {weights_ / dense_weights:.2f}"
    forward, of_weights = sums < dense_sums, weights_ < dense_weights
    if min(sums, dense_sums) + min(weights_, dense_weights) + scan >= dense_sums + dense_weights:
        forward = of_weights = False
    return Choice(forward, of_weights, description)


def restricts_gradient(choice: Choice, key: Key, wanted: float, calls: Callable[[], Sequence[Call]]) -> bool:
    """Whether the input's gradient is computed only where a surrogate lets it through.

    Args:
        choice: of the forward.
        key: of the gradient.
        wanted: density of the places where the gradient is needed.
        calls: returns the two candidates: the gradient at these places, and everywhere by torch.
    """
    return choice is ALL or prefers_events(key, calls, wanted < _by_size(key) * INPUT_UP_TO)


def prefers_events(key: Key, calls: Callable[[], Sequence[Call]], rule: bool) -> bool:
    """Whether the first of two candidates is used: the faster if it was tuned, else as `rule` says."""
    times = _times(key, calls)
    return rule if times is None else times[0] < times[1]


def _times(key: Key, calls: Callable[[], Sequence[Call]] | None) -> tuple[float, ...] | None:
    """The tuned seconds of a product's candidates; None if they were not tuned."""
    if torch.are_deterministic_algorithms_enabled():
        return None
    times = _TUNED.get(key)
    if times is None and _tuning and calls is not None:
        times = _TUNED[key] = _timed(calls())
    return times


@torch.no_grad()
def _timed(calls: Sequence[Call]) -> tuple[float, ...]:
    least = [float("inf")] * len(calls)
    for each in calls:
        each()  # may compile a kernel
    for _ in range(ROUNDS):
        for which, each in enumerate(calls):
            began = time.perf_counter()
            each()
            least[which] = min(least[which], time.perf_counter() - began)
    return tuple(least)
