"""Rounding that gradients pass through as if it were not there.

Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic neurons
for conditional computation*: the straight-through estimator.
"""

import torch
from torch import Tensor

__all__ = ["doubles", "rounded_down", "straight_through"]


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
    if not real.requires_grad:
        return whole
    through: Tensor = _StraightThrough.apply(real, whole)  # type: ignore[no-untyped-call] # torch leaves it so
    return through


class _Down(torch.autograd.Function):
    """``floor(x)`` with the gradient of ``x``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def rounded_down(x: Tensor) -> Tensor:
    """``floor(x)``, differentiated as `x` is: straight through."""
    down: Tensor = _Down.apply(x)  # type: ignore[no-untyped-call] # as above
    return down
