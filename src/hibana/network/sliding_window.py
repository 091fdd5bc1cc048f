"""The window that a convolution or a pooling slides over an image; the order of images in memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node

__all__ = ["SlidingWindow", "channels_last", "image_shape", "int64_tensor", "sliding_window"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class SlidingWindow:
    """A window over an image. Pairs are (height, width); a sequence is an image of height 1."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    """Pixels before the first row and column."""
    end_padding: Pair
    """Pixels after the last row and column."""
    image: Pair
    outputs: Pair

    @property
    def expected_outputs(self) -> Pair:
        """The height and width of the output that the settings imply."""
        padded = (sum(sides) for sides in zip(self.image, self.padding, self.end_padding, strict=True))
        sizes = zip(padded, self.dilation, self.kernel, self.stride, strict=True)
        height, width = ((side - d * (k - 1) - 1) // s + 1 for side, d, k, s in sizes)
        return height, width

    @property
    def taps(self) -> int:
        """The number of taps within the image, summed over the output pixels of one channel."""
        count = 1
        for axis in (0, 1):
            starts = (i * self.stride[axis] - self.padding[axis] for i in range(self.outputs[axis]))
            offsets = [tap * self.dilation[axis] for tap in range(self.kernel[axis])]
            count *= sum(0 <= start + tap < self.image[axis] for start in starts for tap in offsets)
        return count


def sliding_window(node: Node) -> SlidingWindow:
    """The window of `node`, a convolution or a pooling."""
    module, (shape,) = node.module, node.input_shapes

    def pair(size: Any, height: int = 1) -> Pair:
        """A setting of the module, one number or one per side, as a pair; `height` is that of a sequence."""
        sizes = (size,) if isinstance(size, int) else tuple(size)
        return (height if len(shape) == 2 else sizes[0], sizes[-1])

    kernel, dilation = pair(module.kernel_size), pair(getattr(module, "dilation", 1))
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if module.padding == "same":
        padding, end_padding = (height // 2, width // 2), (height - height // 2, width - width // 2)
    else:
        padding = end_padding = pair(0 if module.padding == "valid" else module.padding, 0)
    stride = pair(module.kernel_size if module.stride is None else module.stride)
    image, outputs = image_shape(shape)[1:], image_shape(node.shape)[1:]
    return SlidingWindow(kernel, stride, dilation, padding, end_padding, image, outputs)


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an image, or of a sequence as an image of height 1."""
    channels, *sides = shape
    return (channels, 1, sides[0]) if len(sides) == 1 else (channels, sides[0], sides[1])


def channels_last(shape: Sequence[int]) -> Tensor:
    """PyTorch's index of the number at each place of an image whose channels are last in memory."""
    size = math.prod(shape)
    return torch.arange(size, dtype=torch.int64, device="cpu").view(shape[0], -1).T.flatten()


def int64_tensor(numbers: Iterable[int]) -> Tensor:
    """`numbers` as a tensor."""
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")
