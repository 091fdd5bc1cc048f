"""The node of autograd of max-pooling of spikes, which passes their provenance on."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.attached import attach
from hibana.compiler.derivatives import applied
from hibana.spikes.bits import bits_of
from hibana.spikes.checks import dense_for_more
from hibana.spikes.pooling import kernels
from hibana.spikes.provenance import Provenance, lookup

__all__ = ["max_pooled"]

Pair = tuple[int, int]
GRAIN = 4
"""Rows of output pixels per thread, at least."""


NARROW = 4
"""Width of a window up to which a kernel is compiled for it."""


class _Window(NamedTuple):
    """Sizes of a max-pooling without overlap, (down, across)."""

    channels: int
    image: Pair
    window: Pair

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        return self.image[0] // self.window[0], self.image[1] // self.window[1]

    @property
    def row(self) -> int:
        """Numbers in a row of the output."""
        return self.channels * self.output[1]

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes as arguments of the kernels."""
        (height, width), window, out = self.image, self.window, self.output
        return {
            "channels": self.channels,
            "height": height,
            "width": width,
            "window_height": window[0],
            "window_width": window[1],
            "out_height": out[0],
            "out_width": out[1],
        }


def max_pooled(images: Tensor, window: Pair) -> Tensor | None:
    """Max-pooled spikes, ``[N, channels, height / window, width / window]``, of spikes that are channels
    last.

    None if the images are no spikes, which the kernel finds out.
    """
    geometry = _Window(images.shape[1], (images.shape[2], images.shape[3]), window)
    learning = torch.is_grad_enabled() and images.requires_grad
    under = lookup(images)
    spikes = None if under is None else _known_spikes(images, under, geometry)
    shape = images.shape[0], *geometry.output, geometry.channels
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    which = torch.empty(shape, dtype=torch.uint8, device="cpu") if learning else None
    planes = None
    if spikes is not None:
        planes = _pooled_bits(spikes, out, which, geometry)
    elif not _pooled_numbers(images, out, which, geometry):
        return None
    if under is not None and under.spikes is not None:
        if planes is None:
            planes = bits_of(out.view(-1, geometry.row))[0].view(torch.uint8)[None]
        attach(out, planes, geometry.row)
    result = out.permute(0, 3, 1, 2)
    if which is None:
        return result
    support = None if under is None else _pooled_support(images, under, which, geometry)
    pooled: Tensor = _apply(images, result, which, support, geometry)
    return pooled


def _known_spikes(images: Tensor, below: Provenance, geometry: _Window) -> Tensor | None:
    """The known bits of the images, if the kernel can pool these: a 32nd of the memory traffic."""
    whole = geometry.channels % 16 == 0 and below.length % images[0].numel() == 0
    return below.spikes if whole else None


def _pooled_bits(spikes: Tensor, out: Tensor, which: Tensor | None, geometry: _Window) -> Tensor | None:
    """Pools known bits into `out`; returns the pooled bits, ``[1, rows, bytes]``, if rows are whole words."""
    rows, length = out.shape[0] * out.shape[1], geometry.row
    planes = None if length % 64 else torch.empty(1, rows, length // 8, dtype=torch.uint8, device="cpu")
    given = {"bits": spikes, "target": out, "pooled": planes, "which": which}
    kernels.forward_of_bits(rows, GRAIN, **given, **geometry.sizes)
    return planes


def _pooled_numbers(images: Tensor, out: Tensor, which: Tensor | None, geometry: _Window) -> bool:
    """Pools numbers into `out`; returns whether all of them are 0 or 1."""
    strange = torch.zeros((), dtype=torch.int64, device="cpu")
    pieces = out.shape[0] * out.shape[1]
    kernels.forward(pieces, GRAIN, source=images, target=out, which=which, strange=strange, **geometry.sizes)
    return not strange.item()


def _pooled_support(images: Tensor, below: Provenance, which: Tensor, geometry: _Window) -> Provenance | None:
    """The provenance of pooled spikes: the producer's mask at the pixels that were taken."""
    length = geometry.row
    if below.observers is None:
        return None
    if below.bits is None:
        return Provenance(None, length, below.observers)
    per_step, rest = divmod(below.length, images[0].numel())
    if rest:
        return None
    rows = images.shape[0] * geometry.output[0]
    bits = torch.empty(rows, -(-length // 64), dtype=torch.int64, device="cpu")
    given = {"bits": below.bits, "target": bits, "which": which}
    kernels.support(rows, GRAIN, **given, **geometry.sizes, per_step=per_step)
    return Provenance(bits.view(torch.uint8), length, below.observers)


class _MaxPool(torch.autograd.Function):
    """Saves which pixel of each window was taken; `support` is the provenance of the result."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, result: Tensor, which: Tensor, support: Provenance | None, geometry: _Window
    ) -> Tensor:
        ctx.support, ctx.geometry, ctx.shape = support, geometry, images.shape
        ctx.save_for_backward(which)
        return result.detach()

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        (which,) = ctx.saved_tensors
        geometry: _Window = ctx.geometry
        rows = grad.resolve_neg().permute(0, 2, 3, 1).contiguous()
        count, channels = ctx.shape[0], geometry.channels
        out = torch.empty(count, *geometry.image, channels, dtype=torch.float32, device="cpu")
        given = {"gradient": rows, "target": out, "which": which}
        across = geometry.window[1]
        columns = across if across <= NARROW else 0
        pieces = count * geometry.output[0]
        kernels.backward(pieces, GRAIN, **given, **geometry.sizes, columns=columns)
        return out.permute(0, 3, 1, 2), None, None, None, None


_apply = applied(_MaxPool)
