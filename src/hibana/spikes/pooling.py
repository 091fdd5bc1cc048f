"""``hb.events.MaxPool2d``."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.ambient import as_leaf, is_name
from hibana.spikes.checks import check_no_time, pair, plain
from hibana.spikes.flatten import attach_copy

__all__ = ["MaxPool2d"]


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``; pooled spikes are spikes, and a layer above knows what stands below.

    Where a dilated window lies in the padding alone, -inf is put around the image first, which gives the same
    numbers: torch itself keeps a place outside of the image for such a window, and writes there in the
    backward.

    Raises:
        ValueError: if indices are asked for and a window lies in the padding alone, which has none.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        check_no_time(self, input, 2)
        if self._has_windows_of_padding(input):
            return self._of_padded(input)
        out: Tensor = super().forward(input)
        if (
            not torch.compiler.is_compiling()
            and isinstance(out, Tensor)
            and out.ndim == 4
            and plain(input)
            and out.is_contiguous(memory_format=torch.channels_last)
        ):
            attach_copy(input, out, out.shape[1] * out.shape[3])
        return out

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
        padded = functional.pad(input, around, value=-math.inf)
        return functional.max_pool2d(padded, kernel, stride, 0, dilation)

    def explain(self) -> str:
        """That it is torch's, and what a layer above makes of it."""
        return "torch's: of each window the largest, a spike to the layer above if it was one"


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
