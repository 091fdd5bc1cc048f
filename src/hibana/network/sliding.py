"""What a convolution or a pooling slides over an image: kernel, padding, stride, and what comes out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node

__all__ = ["Sliding", "channels_last", "image_of", "indices", "sliding_of"]

Pair = tuple[int, int]


def _pair(size: Any, sequence: bool) -> tuple[int, int]:
    """What torch has for both dimensions, or of one of a sequence, which is an image of height 1."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if sequence:
        return (1, sizes[0])
    return (sizes[0], sizes[-1])


@dataclass(frozen=True)
class Sliding:
    """What a convolution or a pooling slides over an image, rows first."""

    kernel: Pair
    padding: Pair
    stride: Pair
    dilation: Pair
    image: Pair
    outputs: Pair

    @property
    def taps(self) -> int:
        """How many taps lie within the image, over all output pixels of a channel."""
        count = 1
        for axis in (0, 1):
            begins = range(
                -self.padding[axis],
                self.outputs[axis] * self.stride[axis] - self.padding[axis],
                self.stride[axis],
            )
            reach = range(0, self.kernel[axis] * self.dilation[axis], self.dilation[axis])
            count *= sum(0 <= begin + tap < self.image[axis] for begin in begins for tap in reach)
        return count


def sliding_of(node: Node) -> Sliding:
    """That of `node`."""
    module: Any = node.module
    (seen,) = node.seen
    sequence = len(seen) == 2
    dilation = _pair(getattr(module, "dilation", 1), sequence)
    kernel = _pair(module.kernel_size, sequence)
    stride = _pair(module.stride if module.stride is not None else module.kernel_size, sequence)
    if module.padding == "same":
        first, second = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        padding = first, second
    else:
        padding = _pair(0 if module.padding == "valid" else module.padding, sequence)
    padding = (0 if sequence else padding[0], padding[1])
    return Sliding(kernel, padding, stride, dilation, image_of(seen)[1:], image_of(node.shape)[1:])


def image_of(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an image, or of a sequence as one of height 1."""
    channels, *sides = shape
    return (channels, 1, sides[0]) if len(sides) == 1 else (channels, sides[0], sides[1])


def channels_last(shape: Sequence[int]) -> Tensor:
    """Which number of PyTorch's lies where, in channels, or an image of them, that lie channels last."""
    size = math.prod(shape)
    return torch.arange(size, dtype=torch.int64, device="cpu").view(shape[0], -1).T.flatten()


def indices(numbers: Iterable[int]) -> Tensor:
    """Whole numbers as a tensor."""
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")
