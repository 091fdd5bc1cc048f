"""``hb.events.MaxPool2d``: max pooling of bits, whose result keeps the gradient mask of its input."""

from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.derivatives import unwrapped_apply
from hibana.compiler.spike_metadata import attach
from hibana.spikes import pooling_kernels as kernels
from hibana.spikes.bits import pack_binary, pack_bits
from hibana.spikes.checks import check_no_time, dense_for_more, kernels_accept, pair
from hibana.spikes.layer import needs_gradient
from hibana.spikes.provenance import Provenance, lookup

__all__ = ["MaxPool2d"]

Pair = tuple[int, int]
GRAIN = 4
"""Smallest number of rows of output pixels per thread."""
LARGEST_WINDOW = 4
"""Height and width of a window up to which bits are pooled."""
MOST_PACKED = 4096
"""Most numbers of a row that is packed into bits; rows are divided among threads."""


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, which pools spikes as bits and keeps the mask of their gradient.

    Channels-last spikes of a multiple of 16 channels are pooled as bits, in windows up to 4x4 without
    overlap, padding and dilation. One byte is saved per output: the index of the selected pixel. The gradient
    of spikes emitted with the surrogate ``Step`` is restricted to them. Torch computes all other calls.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    _reason = "not called yet"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        """The pooled `input`; pooled spikes have a gradient mask attached if the spikes are theirs."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        check_no_time(self, input, 2)
        window = pair(self.kernel_size)
        if not torch.compiler.is_compiling() and self._is_without_overlap() and _fits(input, window):
            provenance = lookup(input)
            if provenance is not None and not provenance.is_mask_of(input):
                provenance = None
            bits = _unpadded_bits(input, provenance)
            if bits is not None:
                self.__dict__["_reason"] = "events: the first spike of each window"
                return _pool_bits(input, window, bits, provenance)
        self.__dict__["_reason"] = "torch's: not channels-last spikes, or windows or channels do not fit"
        out: Tensor = super().forward(input)
        return out

    def _is_without_overlap(self) -> bool:
        """Whether windows have no overlap, gap, padding or dilation, and no other option is set."""
        kernel, stride = self.kernel_size, self.kernel_size if self.stride is None else self.stride
        is_dense = pair(self.padding) == (0, 0) and pair(self.dilation) == (1, 1)
        return pair(kernel) == pair(stride) and is_dense and not (self.ceil_mode or self.return_indices)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


def _fits(images: Tensor, window: Pair) -> bool:
    """Whether the kernels can pool `images` if these are spikes."""
    if images.ndim != 4 or not kernels_accept(images):
        return False
    _, channels, height, width = images.shape
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    most_height, most_width = min(height, LARGEST_WINDOW), min(width, LARGEST_WINDOW)
    fits = 0 < window[0] <= most_height and 0 < window[1] <= most_width
    return is_channels_last and fits and channels % kernels.VECTOR == 0


def _unpadded_bits(images: Tensor, provenance: Provenance | None) -> Tensor | None:
    """The bits of `images` in memory order; None if not all numbers are spikes, or rows of bits are padded.

    The mask of `provenance`, if any, is the bits.
    """
    if provenance is not None and provenance.mask.shape[1] * 8 == provenance.length:
        return provenance.mask
    length = gcd(images.numel(), MOST_PACKED)
    planes = None if length % 64 else pack_binary(images.detach().permute(0, 2, 3, 1).view(-1, length))
    return None if planes is None else planes.bits[0].view(torch.uint8)


def _pool_bits(images: Tensor, window: Pair, bits: Tensor, provenance: Provenance | None) -> Tensor:
    """The maxima of spikes from their `bits`: ``[N, channels, height / window, width / window]``.

    With a `provenance`, whose mask is the spikes, the gradient of the maxima is needed at these only.
    """
    count, channels, height, width = images.shape
    out_height, out_width = height // window[0], width // window[1]
    sizes = {"channels": channels, "height": height, "width": width, "out_height": out_height}
    sizes |= {"window_height": window[0], "window_width": window[1], "out_width": out_width}
    out = torch.empty(count, out_height, out_width, channels, dtype=torch.float32, device="cpu")
    learning = needs_gradient(images)
    selected = torch.empty(out.shape, dtype=torch.uint8, device="cpu") if learning else None
    kernels.forward(count * out_height, GRAIN, bits=bits, target=out, selected=selected, **sizes)
    pooled = out.permute(0, 3, 1, 2)
    if not learning:
        return pooled
    pooled = cast(Tensor, _apply(images, pooled, selected, sizes))
    if provenance is not None:
        length = out_width * channels
        mask = pack_bits(out.view(-1, length))[0].view(torch.uint8)
        attach(pooled, length, mask, provenance.observers, is_spikes=True)
    return pooled


class _MaxPool(torch.autograd.Function):
    """Returns the pooled images; saves the index of the selected pixel of each window."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, pooled: Tensor, selected: Tensor, sizes: dict[str, int]) -> Tensor:
        """Returns `pooled` unchanged; saves the indices of the selected pixels."""
        ctx.sizes, ctx.shape = sizes, images.shape
        ctx.save_for_backward(selected)
        return pooled.detach()

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of the images; None for all other arguments."""
        (selected,) = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        gradient = grad.resolve_neg().permute(0, 2, 3, 1).contiguous()
        out = torch.empty(count, height, width, channels, dtype=torch.float32, device="cpu")
        pieces, columns = count * ctx.sizes["out_height"], ctx.sizes["window_width"]
        tensors = {"gradient": gradient, "target": out, "selected": selected}
        kernels.backward(pieces, GRAIN, **tensors, **ctx.sizes, columns=columns)
        return out.permute(0, 3, 1, 2), None, None, None


_apply = unwrapped_apply(_MaxPool)
