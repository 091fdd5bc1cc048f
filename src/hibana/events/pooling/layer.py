"""``hb.events.MaxPool2d``."""

from typing import cast

import torch
from torch import Tensor, nn

from hibana.events.checks import pair, plain
from hibana.events.pooling.autograd import max_pooled
from hibana.loop.leaf import as_leaf, is_name

__all__ = ["MaxPool2d"]


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``; pooled spikes are spikes, and a layer above knows what stands below.

    Without overlap, padding or dilation, over spikes that lie channels last, of each output only the
    place that it came from is kept, in one byte. All else is torch's.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    _reason = "not called yet"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        window = pair(self.kernel_size)
        if (
            not torch.compiler.is_compiling()
            and plain(input)
            and input.ndim == 4
            and input.numel()
            and input.is_contiguous(memory_format=torch.channels_last)
            and (self.stride is None or pair(self.stride) == window)
            and pair(self.padding) == (0, 0)
            and pair(self.dilation) == (1, 1)
            and not (self.ceil_mode or self.return_indices)
            and window[0] * window[1] <= 256
            and 0 < window[0] <= input.shape[2]
            and 0 < window[1] <= input.shape[3]
        ):
            pooled = max_pooled(input, window)
            if pooled is not None:
                self.__dict__["_reason"] = "events: of each window the first spike"
                return pooled
        self.__dict__["_reason"] = "torch's: not spikes that lie channels last, under windows without overlap"
        out: Tensor = super().forward(input)
        return out

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason
