"""``hb.events.MaxPool2d``: max pooling whose result keeps the spikes of its input as bits."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.derivatives import unwrapped_apply
from hibana.compiler.spike_metadata import attach
from hibana.spikes import pooling_kernels as kernels
from hibana.spikes.bits import pack_bits
from hibana.spikes.checks import check_no_time, dense_for_more, kernels_accept, pair
from hibana.spikes.layer import needs_gradient, pack_binary
from hibana.spikes.provenance import Provenance, lookup

__all__ = ["MaxPool2d"]

Pair = tuple[int, int]
GRAIN = 4
"""Smallest number of rows of output pixels per thread."""
LARGEST_WINDOW = 4
"""Height and width of a window up to which bits are pooled."""


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` whose result keeps pooled spikes as bits, for the layer that reads it.

    Channels-last spikes are pooled as bits if windows have no overlap, padding or dilation. One byte is saved
    per output: the index of the selected pixel. If the spikes were emitted with the surrogate ``Step``, the
    gradient is restricted to them. Torch computes all other calls.

    If a dilated window covers padding only, the image is first padded with -inf, which gives the same
    values: torch's own pooling would save an index outside of the image, and write there in the backward.

    Raises:
        ValueError: if ``return_indices`` is set and a window covers padding only.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    _reason = "not called yet"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        """The pooled `input`; pooled spikes have their bits attached."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        check_no_time(self, input, 2)
        if self._has_padding_windows(input):
            return self._pool_padded(input)
        window = pair(self.kernel_size)
        if not torch.compiler.is_compiling() and self._is_without_overlap() and _fits(input, window):
            provenance = lookup(input)
            bits = _unpadded_bits(input, provenance)
            if bits is not None:
                self.__dict__["_reason"] = "events: the first spike of each window"
                return _pool_bits(input, window, bits, provenance)
        self.__dict__["_reason"] = "torch's: not channels-last spikes, or windows overlap"
        out: Tensor = super().forward(input)
        return out

    def _is_without_overlap(self) -> bool:
        """Whether windows have no overlap, gap, padding or dilation, and no other option is set."""
        kernel, stride = self._kernel_and_stride()
        is_dense = pair(self.padding) == (0, 0) and pair(self.dilation) == (1, 1)
        return kernel == stride and is_dense and not (self.ceil_mode or self.return_indices)

    def _has_padding_windows(self, input: Tensor) -> bool:  # noqa: A002
        """Whether a window covers padding only, which is possible for dilated windows alone."""
        padding, dilation = pair(self.padding), pair(self.dilation)
        if dilation == (1, 1) or padding == (0, 0) or input.ndim < 3 or not input.is_floating_point():
            return False
        kernel, stride = self._kernel_and_stride()
        if (
            any(2 * p > k for p, k in zip(padding, kernel, strict=True))
            or min(*kernel, *stride, *dilation) < 1
        ):
            return False  # torch raises an error for these
        sizes = list(zip(input.shape[-2:], kernel, stride, padding, dilation, strict=True))
        if min(_windows(*size, ceil=self.ceil_mode) for size in sizes) < 1:
            return False
        return any(_has_padding_window(*size, ceil=self.ceil_mode) for size in sizes)

    def _kernel_and_stride(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The sizes of the window and of the stride, each as (height, width)."""
        return pair(self.kernel_size), pair(self.kernel_size if self.stride is None else self.stride)

    def _pool_padded(self, input: Tensor) -> Tensor:  # noqa: A002
        """Torch's pooling of `input`, padded with -inf so that all windows lie within."""
        if self.return_indices:
            raise ValueError(
                f"return_indices must be False for an input of shape {tuple(input.shape)}: with padding "
                f"{self.padding} and dilation {self.dilation} some windows cover padding only"
            )
        kernel, stride = self._kernel_and_stride()
        padding, dilation = pair(self.padding), pair(self.dilation)
        around: list[int] = []
        for size, k, s, p, d in zip(input.shape[-2:], kernel, stride, padding, dilation, strict=True):
            windows = _windows(size, k, s, p, d, ceil=self.ceil_mode)
            around = [p, (windows - 1) * s + d * (k - 1) + 1 - size - p, *around]
        self.__dict__["_reason"] = "torch's: a window covers padding only"
        padded = functional.pad(input, around, value=-math.inf)
        return functional.max_pool2d(padded, kernel, stride, 0, dilation)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> int:
    """The number of windows of torch's pooling over a line of `size` pixels."""
    last_start = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (last_start + (stride - 1 if ceil else 0)) // stride + 1
    last_is_outside = ceil and (count - 1) * stride >= size + padding
    return count - last_is_outside


def _has_padding_window(
    size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool
) -> bool:
    """Whether a window over a line of `size` pixels covers none of them; only windows that begin before the
    first pixel can.
    """
    starts = range(-padding, 0, stride)[: _windows(size, kernel, stride, padding, dilation, ceil=ceil)]
    return not all(any(0 <= start + tap * dilation < size for tap in range(kernel)) for start in starts)


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
    """The bits of `images` in memory order; None if not all numbers are spikes, or rows are padded."""
    if provenance is not None and provenance.spikes is not None:
        return provenance.spikes if provenance.spikes.shape[-1] * 8 == provenance.length else None
    length = images.shape[3] * images.shape[1]
    planes = None if length % 64 else pack_binary(images.detach().permute(0, 2, 3, 1).view(-1, length))
    return None if planes is None else planes.bits[0].view(torch.uint8)


def _pool_bits(images: Tensor, window: Pair, bits: Tensor, provenance: Provenance | None) -> Tensor:
    """The maxima of spikes from their `bits`: ``[N, channels, height / window, width / window]``."""
    count, channels, height, width = images.shape
    out_height, out_width = height // window[0], width // window[1]
    sizes = {"channels": channels, "height": height, "width": width, "out_height": out_height}
    sizes |= {"window_height": window[0], "window_width": window[1], "out_width": out_width}
    rows, length = count * out_height, out_width * channels
    out = torch.empty(count, out_height, out_width, channels, dtype=torch.float32, device="cpu")
    learning = needs_gradient(images)
    selected = torch.empty(out.shape, dtype=torch.uint8, device="cpu") if learning else None
    planes = None if length % 64 else torch.empty(1, rows, length // 8, dtype=torch.uint8, device="cpu")
    kernels.forward(rows, GRAIN, bits=bits, target=out, pooled=planes, selected=selected, **sizes)
    if planes is None:
        planes = pack_bits(out.view(rows, length))[0].view(torch.uint8)[None]
    pooled = out.permute(0, 3, 1, 2)
    if learning:
        pooled = _apply(images, pooled, selected, sizes)
    mask_is_spikes = learning and provenance is not None and provenance.mask is None
    observers = provenance.observers if provenance is not None and mask_is_spikes else None
    attach(pooled, planes, length, observers=observers)
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
