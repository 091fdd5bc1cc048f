"""Rounding that gradients pass through as if it were not there.

Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic neurons
for conditional computation*: the straight-through estimator.
"""

import torch
from torch import Tensor

__all__ = ["doubles", "straight_through"]


def doubles(value: Tensor | float) -> Tensor:
    """`value` in float64, on the device that it is on."""
    if isinstance(value, Tensor):
        return value.double()
    return torch.tensor(value, dtype=torch.float64, device="cpu")


class _StraightThrough(torch.autograd.Function):
    """A number in the place of another one, with the gradient of that."""

    generate_vmap_rule = True

    @staticmethod
    def forward(real: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(real: Tensor, whole: Tensor) -> Tensor:
    """`whole`, whose gradient goes to `real` as if it were `real`."""
    through: Tensor = _StraightThrough.apply(real, whole)  # type: ignore[no-untyped-call] # torch leaves it so
    return through
