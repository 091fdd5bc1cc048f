"""``hb.events.MaxPool2d``."""

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
"""Rows of output pixels per thread, at least."""
WIDEST = 4
"""Height and width of a window up to which bits are pooled."""


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``; pooled spikes are spikes, and a layer above knows what stands below.

    Without overlap, padding or dilation, spikes that lie channels last are pooled as bits, and of each output
    the place that it came from is saved in one byte; the gradient below is restricted for the surrogate
    ``Step``. Everything else is torch's.

    Where a dilated window lies in the padding alone, -inf is put around the image first, which gives the same
    numbers: torch itself keeps a place outside of the image for such a window, and writes there in the
    backward.

    Raises:
        ValueError: if indices are asked for and a window lies in the padding alone, which has none.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    _reason = "not called yet"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        check_no_time(self, input, 2)
        if self._has_windows_of_padding(input):
            return self._of_padded(input)
        window = pair(self.kernel_size)
        if not torch.compiler.is_compiling() and self._is_without_overlap() and _fits(input, window):
            below = lookup(input)
            spikes = _bits(input, below)
            if spikes is not None:
                self.__dict__["_reason"] = "events: of each window the first spike"
                return _pooled(input, window, spikes, below)
        self.__dict__["_reason"] = "torch's: not spikes that lie channels last, or windows overlap"
        out: Tensor = super().forward(input)
        return out

    def _is_without_overlap(self) -> bool:
        kernel, stride = self._kernel_and_stride()
        plain_window = pair(self.padding) == (0, 0) and pair(self.dilation) == (1, 1)
        return kernel == stride and plain_window and not (self.ceil_mode or self.return_indices)

    def _has_windows_of_padding(self, input: Tensor) -> bool:  # noqa: A002
        """Whether some window meets no pixel of `input`, as only a dilated one can."""
        padding, dilation = pair(self.padding), pair(self.dilation)
        if dilation == (1, 1) or padding == (0, 0) or input.ndim < 3 or not input.is_floating_point():
            return False
        kernel, stride = self._kernel_and_stride()
        if (
            any(2 * p > k for p, k in zip(padding, kernel, strict=True))
            or min(*kernel, *stride, *dilation) < 1
        ):
            return False  # torch refuses them
        sizes = list(zip(input.shape[-2:], kernel, stride, padding, dilation, strict=True))
        if min(_windows(*size, ceil=self.ceil_mode) for size in sizes) < 1:
            return False
        return any(_meets_nothing(*size, ceil=self.ceil_mode) for size in sizes)

    def _kernel_and_stride(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return pair(self.kernel_size), pair(self.kernel_size if self.stride is None else self.stride)

    def _of_padded(self, input: Tensor) -> Tensor:  # noqa: A002
        """Torch's pooling of `input` with -inf put around it, so that every window lies within."""
        if self.return_indices:
            raise ValueError(
                f"return_indices must be False for an input of shape {tuple(input.shape)}: with padding "
                f"{self.padding} and dilation {self.dilation} some windows hold no pixel"
            )
        kernel, stride = self._kernel_and_stride()
        padding, dilation = pair(self.padding), pair(self.dilation)
        around: list[int] = []
        for size, k, s, p, d in zip(input.shape[-2:], kernel, stride, padding, dilation, strict=True):
            windows = _windows(size, k, s, p, d, ceil=self.ceil_mode)
            around = [p, (windows - 1) * s + d * (k - 1) + 1 - size - p, *around]
        self.__dict__["_reason"] = "torch's: a window lies in the padding alone"
        padded = functional.pad(input, around, value=-math.inf)
        return functional.max_pool2d(padded, kernel, stride, 0, dilation)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> int:
    """How many windows torch puts over `size` pixels in a row."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    begins_beyond = ceil and (count - 1) * stride >= size + padding
    return count - begins_beyond


def _meets_nothing(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> bool:
    """Whether some window over `size` pixels in a row meets none of them: one that begins in the padding."""
    begins = range(-padding, 0, stride)[: _windows(size, kernel, stride, padding, dilation, ceil=ceil)]
    return not all(any(0 <= begin + tap * dilation < size for tap in range(kernel)) for begin in begins)


def _fits(images: Tensor, window: Pair) -> bool:
    """Whether the kernels can pool these `images`, if they are spikes."""
    if images.ndim != 4 or not kernels_accept(images):
        return False
    _, channels, height, width = images.shape
    lies_last = images.is_contiguous(memory_format=torch.channels_last)
    inside = 0 < window[0] <= min(height, WIDEST) and 0 < window[1] <= min(width, WIDEST)
    return lies_last and inside and channels % kernels.VECTOR == 0


def _bits(images: Tensor, below: Provenance | None) -> Tensor | None:
    """The bits of `images` as they lie, without padding; None if they are no spikes, or rows are padded."""
    if below is not None and below.spikes is not None:
        return below.spikes if below.spikes.shape[-1] * 8 == below.length else None
    length = images.shape[3] * images.shape[1]
    planes = None if length % 64 else pack_binary(images.detach().permute(0, 2, 3, 1).view(-1, length))
    return None if planes is None else planes.bits[0].view(torch.uint8)


def _pooled(images: Tensor, window: Pair, spikes: Tensor, below: Provenance | None) -> Tensor:
    """Max-pooled `spikes`, bits of `images`: ``[N, channels, height / window, width / window]``."""
    count, channels, height, width = images.shape
    out_height, out_width = height // window[0], width // window[1]
    sizes = {"channels": channels, "height": height, "width": width, "out_height": out_height}
    sizes |= {"window_height": window[0], "window_width": window[1], "out_width": out_width}
    rows, length = count * out_height, out_width * channels
    out = torch.empty(count, out_height, out_width, channels, dtype=torch.float32, device="cpu")
    learning = needs_gradient(images)
    which = torch.empty(out.shape, dtype=torch.uint8, device="cpu") if learning else None
    planes = None if length % 64 else torch.empty(1, rows, length // 8, dtype=torch.uint8, device="cpu")
    kernels.forward(rows, GRAIN, bits=spikes, target=out, pooled=planes, which=which, **sizes)
    if planes is None:
        planes = pack_bits(out.view(rows, length))[0].view(torch.uint8)[None]
    pooled = out.permute(0, 3, 1, 2)
    if learning:
        pooled = _apply(images, pooled, which, sizes)
    exact = learning and below is not None and below.mask is None
    attach(pooled, planes, length, observers=below.observers if below is not None and exact else None)
    return pooled


class _MaxPool(torch.autograd.Function):
    """Saves which pixel of each window was taken."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, pooled: Tensor, which: Tensor, sizes: dict[str, int]) -> Tensor:
        ctx.sizes, ctx.shape = sizes, images.shape
        ctx.save_for_backward(which)
        return pooled.detach()

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        (which,) = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        gradient = grad.resolve_neg().permute(0, 2, 3, 1).contiguous()
        out = torch.empty(count, height, width, channels, dtype=torch.float32, device="cpu")
        pieces, columns = count * ctx.sizes["out_height"], ctx.sizes["window_width"]
        given = {"gradient": gradient, "target": out, "which": which}
        kernels.backward(pieces, GRAIN, **given, **ctx.sizes, columns=columns)
        return out.permute(0, 3, 1, 2), None, None, None


_apply = unwrapped_apply(_MaxPool)
