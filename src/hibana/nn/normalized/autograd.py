"""The moments of a batch, and the node of autograd at which the gradient through them is added."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import Producer
from hibana.compiler.derivatives import applied, are_batched, differentiated_once
from hibana.nn.normalized import kernels
from hibana.runtime.kernels import FLOAT, Sized, float_bits

__all__ = ["Moments", "moments", "scales", "standardised"]

BLOCK = 16384
"""Numbers of a block, which are still in a second-level cache when they are read again."""
LONGEST = 512
"""Pixels of a block at most: they are summed one after the other, in float32."""
SHORTEST = 16
"""And at least, where blocks end as the pieces of a producer do."""
NEAR = 1 << 19
"""Bytes that a producer computes before they are read again, which stay in a second-level cache."""


class Moments(NamedTuple):
    """Of each channel, and what follows from them; ``[channels, 1, ...]``."""

    mean: Tensor
    unbiased: Tensor
    """The variance, of a sample."""
    inverse: Tensor
    """``1 / sqrt(variance + eps)``, of the variance of these numbers."""
    scale: Tensor
    """That times the weight."""
    shift: Tensor
    """The bias."""


def moments(
    currents: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    producer: Producer | None = None,
) -> Moments:
    """Of ``[N, channels, ...]``, channels last in memory, which a `producer` may have yet to compute.

    Two passes over each block; blocks are put together in float64. What was to be computed is, afterwards.

    Source: Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*: the corrected
    two-pass algorithm.
    """
    sizes, blocks = _blocks(currents.shape)
    channels = sizes["channels"]
    if producer is not None:
        each = _fitting(producer.length, channels, sizes["each"])
        if each < SHORTEST:
            producer.finish()
            producer = None
        else:
            sizes, blocks = sizes | {"each": each}, sizes["pixels"] // each
    of_blocks = torch.empty(3, blocks, channels, dtype=torch.float32, device="cpu").unbind()
    parts = dict(zip(("means", "drifts", "squares"), of_blocks, strict=True))
    if producer is None:
        kernels.moments_of_blocks(blocks, source=currents, **parts, **sizes)
    else:
        pieces, (address, packed, _) = currents.numel() // producer.length, producer.call
        kernels.moments_of_pieces(
            pieces,
            producer=address,
            producer_args=torch.frombuffer(bytearray(packed), dtype=torch.int64),
            several=max(1, NEAR // (producer.length * FLOAT.size)),
            blocks=blocks // pieces,
            source=currents,
            **parts,
            **sizes,
        )
    ones = (1,) * (currents.ndim - 2)
    found = Moments(*torch.empty(5, channels, *ones, dtype=torch.float32, device="cpu").unbind())
    given = _lying({"weight": weight, "bias": bias})
    kernels.moments(1, **parts, **given, **found._asdict(), eps=float_bits(eps), **sizes)
    return found


def scales(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ones: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each channel ``1 / sqrt(variance + eps)``, that times `weight`, and `bias` less `mean` times it.

    Each has so many dimensions of `ones` after that of the channels.
    """
    channels = variance.shape[0]
    inverse, scale, shift = torch.empty(3, channels, *(1,) * ones, dtype=torch.float32, device="cpu").unbind()
    given = {"mean": mean, "variance": variance, "weight": weight, "bias": bias}
    _scales(channels, eps)(1, **_lying(given), inverse=inverse, scale=scale, shift=shift)
    return inverse, scale, shift


@lru_cache
def _scales(channels: int, eps: float) -> Sized:
    return kernels.scales.sized(channels=channels, eps=float_bits(eps))


def _lying(given: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """What is `given`, contiguous."""
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in given.items()}


def standardised(
    currents: Tensor, weight: Tensor | None, bias: Tensor | None, found: Moments, steps: int
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
        found: the moments of `currents`, with what follows from them, weight and bias.
        steps: of the sequence; 0 for what is to stay without time.
    """
    made: tuple[Tensor, Tensor, Tensor] = _apply(currents, weight, bias, found, steps)
    return made


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        found: Moments,
        steps: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(currents.detach(), found.mean, found.inverse, found.scale)
        values = currents.detach()
        return values.view(steps, -1, *values.shape[1:]) if steps else values, found.scale, found.shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (_once if torch.is_grad_enabled() or are_batched(grads) else _backward)(ctx, *grads)


_apply = applied(_Standardised)


def _backward(ctx: Any, gradient: Tensor, of_scale: Tensor, of_shift: Tensor) -> Any:
    currents, mean, inverse, scale = ctx.saved_tensors
    to_currents, to_weight, to_bias = ctx.needs_input_grad[:3]
    to_them = None
    if to_currents:
        # the gradient is the loop's own, of which nobody else has heard
        to_them = _lying_last(gradient.reshape(currents.shape))
        sizes, blocks = _blocks(currents.shape)
        kernels.through_moments(
            blocks,
            gradient=to_them,
            source=currents,
            mean=mean,
            inverse=inverse,
            scale=scale,
            of_scale=of_scale.contiguous(),
            of_shift=of_shift.contiguous(),
            **sizes,
        )
    return (
        to_them,
        (inverse * of_scale).view(-1) if to_weight else None,
        of_shift.reshape(-1) if to_bias else None,
        None,
        None,
    )


_once = differentiated_once(
    _backward, "torch.nn.Sequential in the place of hb.Normalized has further derivatives"
)


def _lying_last(values: Tensor) -> Tensor:
    """`values` with their channels last in memory."""
    last = values.movedim(1, -1)
    return values if last.is_contiguous() else last.contiguous().movedim(-1, 1)


@lru_cache
def _blocks(shape: torch.Size) -> tuple[dict[str, int], int]:
    """The sizes that kernels take, and how many blocks there are."""
    channels = shape[1]
    pixels = shape.numel() // channels
    each = max(1, min(LONGEST, BLOCK // channels))
    return {"channels": channels, "pixels": pixels, "each": each}, -(-pixels // each)


@lru_cache
def _fitting(length: int, channels: int, most: int) -> int:
    """Pixels of a block, up to `most`, so that pieces of a `length` are whole blocks; 0 if they can't be."""
    if length % channels:
        return 0
    return max(each for each in range(1, most + 1) if length // channels % each == 0)
