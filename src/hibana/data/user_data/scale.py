"""Scaling of numbers, fitted on the training part, and comparison of other numbers with its range."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FAR, OFTEN = 1.0, 0.05
"""Data differ from the training data if more than the share OFTEN of a feature's values lie outside the range
of the training part by more than FAR times its width."""


@dataclass(frozen=True)
class Scale:
    """A shift and a factor, one for each feature (the last axis), or one for all features.

    Args:
        shift: subtracted first.
        factor: multiplied with the difference.
        low: the smallest value of the training part.
        high: the largest value of the training part.
        clipped: whether results are clipped to [0, 1].
    """

    shift: tuple[float, ...]
    factor: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clipped: bool

    def __call__(self, values: Tensor) -> Tensor:
        """`values`, ``[..., F]``, scaled, as ``float32``."""
        shift, factor = _tensor(self.shift), _tensor(self.factor)
        scaled = ((values.double() - shift) * factor).float()
        return scaled.clamp(0, 1) if self.clipped else scaled

    def difference_from_training(self, values: Tensor, names: Sequence[str]) -> str:
        """A clause that names a feature of `values`, ``[..., F]``, with another range than in training.

        Empty if there is no such feature.

        Args:
            values: numbers before scaling.
            names: one name per feature, or one name if the scale has one entry.
        """
        flat = values.reshape(-1, len(self.low)).double()
        low, high = _tensor(self.low), _tensor(self.high)
        width = (high - low).clamp(min=1e-12) * FAR
        outside = ((flat < low - width) | (flat > high + width)).double().mean(0)
        for index in (outside > OFTEN).nonzero().flatten().tolist():
            name, column = names[index], flat[:, index]
            return (
                f"{name} goes from {column.min():.4g} to {column.max():.4g}; the training data go "
                f"from {self.low[index]:.4g} to {self.high[index]:.4g}"
            )
        return ""


def fit_scale(values: Tensor, *, unit: bool, joint: bool = False) -> Scale:
    """The scale that maps `values`, ``[..., F]``, to mean 0 and deviation 1, or to [0, 1] with `unit`.

    A feature that never changes becomes 0. `joint` fits one scale for all features.
    """
    flat = values.reshape(-1, 1 if joint else values.shape[-1]).double()
    low, high = flat.amin(0), flat.amax(0)
    deviation, mean = torch.std_mean(flat, dim=0, correction=0)
    shift, width = (low, high - low) if unit else (mean, deviation)
    constant = width <= 1e-12 * flat.abs().amax(0).clamp(min=1e-300)
    factor = torch.where(constant, 0.0, 1 / width)
    shifts, factors, lows, highs = (tuple(row.tolist()) for row in (shift, factor, low, high))
    return Scale(shifts, factors, lows, highs, clipped=unit)


def _tensor(values: tuple[float, ...]) -> Tensor:
    """`values` as ``float64`` on the CPU."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")
