"""The moments of a batch, and the node of autograd at which the gradient through them is added."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.loop.derivatives import differentiated_once
from hibana.native import float_bits
from hibana.normalized import kernels

__all__ = ["Moments", "moments", "rows_of", "scales", "standardised"]

BLOCK = 16384
"""Numbers of a block, which are still in a second-level cache when they are read again."""
LONGEST = 512
"""Pixels of a block at most: they are summed one after the other, in float32."""


class Moments(NamedTuple):
    """Of each channel."""

    mean: Tensor
    variance: Tensor
    """The mean of the squares of what differs from the mean."""
    numbers: int
    """How many they are of."""


def moments(rows: Tensor) -> Moments:
    """Of ``[pixels, channels]``, contiguous: two passes over each block; blocks are put together in float64.

    Source: Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*: the corrected
    two-pass algorithm.
    """
    pixels, channels = rows.shape
    sizes, blocks = _blocks(rows)
    names = ("means", "drifts", "squares")
    parts = dict(zip(names, rows.new_empty(3, blocks, channels).unbind(), strict=True))
    kernels.moments_of_blocks(blocks, source=rows, **parts, **sizes)
    mean, variance = rows.new_empty(2, channels).unbind()
    kernels.moments(1, **parts, mean=mean, variance=variance, **sizes)
    return Moments(mean, variance, pixels)


def scales(
    variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mean: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For each channel ``1 / sqrt(variance + eps)``, that times `weight`, and `bias` less `mean` times it."""
    channels = variance.shape[0]
    inverse, scale, shift = torch.empty(3, channels, dtype=torch.float32, device="cpu").unbind()
    kernels.scales(
        1,
        mean=_lying(mean),
        variance=_lying(variance),
        weight=_lying(weight),
        bias=_lying(bias),
        inverse=inverse,
        scale=scale,
        shift=shift,
        channels=channels,
        eps=float_bits(eps),
    )
    return inverse, scale, shift


def _lying(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def rows_of(currents: Tensor) -> Tensor:
    """``[pixels, channels]`` of ``[N, channels, ...]``: a view, where channels come last in memory."""
    return currents.permute(0, *range(2, currents.ndim), 1).flatten(0, -2)


def standardised(
    currents: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, found: Moments, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`currents` as a sequence, and for each channel the scale and the shift by which they are normalised.

        y = (x - mean) * scale + shift,   scale = weight / sqrt(variance + eps),   shift = bias

    What of the gradient goes through mean and variance is added at the currents that come back:

        dx = dx' - scale * (d_shift + (x - mean) * d_scale / (variance + eps)) / count

    with dx', d_scale and d_shift those of what this gives. One node does it, views included.

    Args:
        currents: ``[steps * batch, channels, ...]``, whose channels come last in memory.
        weight: of the normalisation; None for one.
        bias: of the normalisation; None for zero.
        eps: of the normalisation.
        found: the moments of `currents`.
        steps: of the sequence; 0 for what is to stay without time.
    """
    made: tuple[Tensor, Tensor, Tensor] = _Standardised.apply(currents, weight, bias, found, eps, steps)  # type: ignore[no-untyped-call] # torch leaves it so
    return made


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        found: Moments,
        eps: float,
        steps: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inverse, scale, shift = scales(found.variance, weight, bias, eps)
        ctx.save_for_backward(currents, found.mean, inverse, scale)
        values = currents.detach()
        return values.view(steps, -1, *values.shape[1:]) if steps else values, scale, shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (_once if torch.is_grad_enabled() else _backward)(ctx, *grads)


def _backward(ctx: Any, gradient: Tensor, of_scale: Tensor, of_shift: Tensor) -> Any:
    currents, mean, inverse, scale = ctx.saved_tensors
    to_currents, to_weight, to_bias = ctx.needs_input_grad[:3]
    to_them = None
    if to_currents:
        rows = rows_of(currents)
        lying = rows_of(gradient if gradient.ndim == currents.ndim else gradient.flatten(0, 1)).contiguous()
        sizes, blocks = _blocks(rows)  # the gradient is the loop's own, of which nobody else has heard
        kernels.through_moments(
            blocks,
            gradient=lying,
            source=rows,
            mean=mean,
            inverse=inverse,
            scale=scale,
            of_scale=of_scale.contiguous(),
            of_shift=of_shift.contiguous(),
            **sizes,
        )
        shape = (currents.shape[0], *currents.shape[2:], currents.shape[1])
        to_them = lying.view(shape).permute(0, -1, *range(1, currents.ndim - 1))
    return (
        to_them,
        inverse * of_scale if to_weight else None,
        of_shift if to_bias else None,
        None,
        None,
        None,
    )


_once = differentiated_once(
    _backward, "torch.nn.Sequential in the place of hb.Normalized has further derivatives"
)


def _blocks(rows: Tensor) -> tuple[dict[str, int], int]:
    """The sizes that kernels take, and how many blocks there are."""
    pixels, channels = rows.shape
    each = max(1, min(LONGEST, BLOCK // channels))
    return {"channels": channels, "pixels": pixels, "each": each}, -(-pixels // each)
