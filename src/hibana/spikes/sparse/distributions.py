"""Distributions of the weights and delays of random synapses."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.spikes.sparse.connections import MAX_DELAY

__all__ = ["Distribution", "alias_table", "delay_probabilities", "normal", "uniform"]

SMALLEST_SHARE = 0.01
"""Smallest share of random numbers that the bounds may leave, since numbers outside are drawn again."""
CHOICES = MAX_DELAY + 1
"""Number of different delays."""


@dataclass(frozen=True)
class Distribution:
    """Random numbers ``offset + scale z``; those outside of [`low`, `high`] are drawn again."""

    is_normal: bool
    """Whether z is a standard normal number; otherwise it is uniform in [0, 1)."""
    offset: float
    scale: float
    low: float
    high: float

    def cumulative(self, x: float) -> float:
        """The probability of a number below `x`, without the bounds."""
        z = (x - self.offset) / self.scale
        return 0.5 * math.erfc(-z / math.sqrt(2)) if self.is_normal else min(max(z, 0.0), 1.0)


def normal(mean: float, std: float, low: float = -math.inf, high: float = math.inf) -> Distribution:
    """Normal numbers; those outside of [`low`, `high`] are drawn again, as by ``redraw`` in NEST.

    Raises:
        ValueError: if `std` is not positive, or less than 1% of the numbers lie between the bounds.
    """
    if not (0 < std < math.inf and math.isfinite(mean)):
        raise ValueError(
            f"std must be positive and mean finite, got {std} and {mean}; pass a number for std 0"
        )
    distribution = Distribution(True, mean, std, low, high)
    share = distribution.cumulative(high) - distribution.cumulative(low)
    if not share >= SMALLEST_SHARE:
        raise ValueError(f"low and high must leave {SMALLEST_SHARE:.0%} of the numbers, got {distribution}")
    return distribution


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`, all equally probable.

    Delays are rounded: for equally probable delays from 1 to 5 steps, write ``uniform(0.5, 5.5)``.

    Raises:
        ValueError: if `low` is not less than `high`.
    """
    if not 0 < high - low < math.inf:
        raise ValueError(f"low must be less than high, and both finite, got {low} and {high}")
    return Distribution(False, low, high - low, low, high)


def delay_probabilities(delay: Distribution) -> Tensor:
    """The probability of each delay from 0 to 255 steps, ``[256]``, float64.

    Numbers are rounded to the nearest whole number; those rounded outside of [0, 255] are drawn again.

    Raises:
        ValueError: if less than 1% of the numbers are rounded into [0, 255].
    """
    edges = [min(max(step - 0.5, delay.low), delay.high) for step in range(CHOICES + 1)]
    shares = torch.tensor([delay.cumulative(x) for x in edges], dtype=torch.float64, device="cpu").diff()
    if shares.sum() < SMALLEST_SHARE:
        raise ValueError(f"delay must lie in [0, {MAX_DELAY}] steps, got {delay}")
    return shares / shares.sum()


def alias_table(delay: float | Distribution) -> Tensor:
    """A table from which random bits select a delay: ``[256]``, int32.

    Column i has a threshold in the upper 24 bits and another delay in the lower 8. A random column is
    selected, then its index i with probability ``threshold / 2**24``, else the other delay. So probabilities
    are multiples of 2^-32.

    Raises:
        ValueError: if a number is not whole and in [0, 255], or almost no number of a distribution is.

    Source: Vose (1991), *A linear algorithm for generating random numbers with a given distribution*.
    """
    if not isinstance(delay, Distribution):
        if not (0 <= delay <= MAX_DELAY and delay % 1 == 0):
            raise ValueError(f"delay must be a whole number of steps in [0, {MAX_DELAY}], got {delay}")
        return torch.full((CHOICES,), int(delay), dtype=torch.int32, device="cpu")
    heights = (delay_probabilities(delay) * CHOICES).tolist()
    others = list(range(CHOICES))
    low, high = ([i for i in others if (heights[i] < 1) == is_low] for is_low in (True, False))
    while low and high:
        column, donor = low.pop(), high[-1]
        others[column] = donor
        heights[donor] -= 1 - heights[column]
        if heights[donor] < 1:
            low.append(high.pop())
    thresholds = (torch.tensor(heights, dtype=torch.float64, device="cpu") * 2**24).long().clamp(0, 2**24 - 1)
    return (thresholds << 8 | torch.tensor(others, device="cpu")).to(torch.int32)
