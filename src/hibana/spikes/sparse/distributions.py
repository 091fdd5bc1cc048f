"""Distributions of the weights and delays of random synapses."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.spikes.sparse.connections import MAX_DELAY

__all__ = ["Distribution", "Normal", "Uniform", "delay_probabilities"]

SMALLEST_MASS = 0.01
"""Smallest share of a normal distribution that its bounds may leave: numbers outside are drawn again."""


@dataclass(frozen=True)
class Normal:
    """A normal distribution restricted to the interval from `low` to `high`."""

    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std) and math.isfinite(self.mean)):
            raise ValueError(f"mean must be finite and std positive, got {self}; pass a number for std=0")
        if not self.cumulative(self.high) - self.cumulative(self.low) >= SMALLEST_MASS:
            raise ValueError(f"the bounds must leave at least {SMALLEST_MASS:.0%} of numbers, got {self}")

    def cumulative(self, x: float) -> float:
        """The probability of a number below `x` without the bounds."""
        return 0.5 * math.erfc((self.mean - x) / (self.std * math.sqrt(2)))


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ValueError(f"low must be less than high, and both finite, got {self}")

    def cumulative(self, x: float) -> float:
        """The probability of a number below `x`."""
        return min(max((x - self.low) / (self.high - self.low), 0.0), 1.0)


Distribution = Normal | Uniform


def delay_probabilities(delay: Distribution) -> Tensor:
    """The probability of each delay from 0 to 255 steps, ``[256]``, float64.

    Numbers are rounded to the nearest whole number. Numbers outside of the bounds, or rounded to less than 0
    or to more than 255, are drawn again.

    Raises:
        ValueError: if less than 1% of the numbers are in [0, 255].
    """
    edges = [min(max(step - 0.5, delay.low), delay.high) for step in range(MAX_DELAY + 2)]
    cumulative = torch.tensor([delay.cumulative(edge) for edge in edges], dtype=torch.float64, device="cpu")
    mass = float(cumulative[-1] - cumulative[0])
    if mass < SMALLEST_MASS:
        raise ValueError(
            f"delay must mostly lie in [0, {MAX_DELAY}] steps, got {delay}: {mass:.2%} of its numbers do"
        )
    return cumulative.diff() / mass
