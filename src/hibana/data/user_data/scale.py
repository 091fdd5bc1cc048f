"""Scaling of numbers, learned on the training part, and comparison of other numbers with its range."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Scale", "fit_scale"]

FAR, OFTEN = 1.0, 0.05
"""Inputs differ from the training data if this share of values is this many widths outside of their range."""


@dataclass(frozen=True)
class Scale:
    """A shift and a factor for each feature, the last axis, or one for all.

    Args:
        shift: is subtracted first.
        factor: multiplies the difference.
        low: the smallest value of the training part.
        high: the largest.
        clipped: whether results are clipped to [0, 1].
    """

    shift: tuple[float, ...]
    factor: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clipped: bool

    def __call__(self, values: Tensor) -> Tensor:
        """`values`, ``[..., F]``, on this scale."""
        shift, factor = (
            torch.tensor(each, dtype=torch.float64, device="cpu") for each in (self.shift, self.factor)
        )
        scaled = ((values.double() - shift) * factor).float()
        return scaled.clamp(0, 1) if self.clipped else scaled

    def difference_from_training(self, values: Tensor, names: Sequence[str]) -> str:
        """How `values`, ``[..., F]``, differ from the training data, as a clause; empty if they do not.

        `names` are those of the features, or one for all.
        """
        flat = values.reshape(-1, len(self.low)).double()
        low, high = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (self.low, self.high))
        width = (high - low).clamp(min=1e-12) * FAR
        beyond = ((flat < low - width) | (flat > high + width)).double().mean(0)
        for index in (beyond > OFTEN).nonzero().flatten().tolist():
            name, column = names[index], flat[:, index]
            return (
                f"{name} goes from {column.min():.4g} to {column.max():.4g}; the training data go "
                f"from {self.low[index]:.4g} to {self.high[index]:.4g}"
            )
        return ""


def fit_scale(values: Tensor, *, unit: bool, joint: bool = False) -> Scale:
    """The scale on which `values`, ``[..., F]``, have mean 0 and deviation 1; with `unit`, reach from 0 to 1.

    A feature that never changes becomes 0. `joint` takes one scale for all features.
    """
    flat = values.reshape(-1, 1 if joint else values.shape[-1]).double()
    low, high = flat.amin(0), flat.amax(0)
    deviation, mean = torch.std_mean(flat, dim=0, correction=0)
    shift, width = (low, high - low) if unit else (mean, deviation)
    constant = width <= 1e-12 * flat.abs().amax(0).clamp(min=1e-300)
    factor = torch.where(constant, 0.0, 1 / width)
    shifts, factors, lows, highs = (tuple(each.tolist()) for each in (shift, factor, low, high))
    return Scale(shifts, factors, lows, highs, clipped=unit)
