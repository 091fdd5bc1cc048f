"""What a convolution or a pooling slides over an image: kernel, padding, stride, and what comes out."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node

__all__ = ["Sliding", "channels_last", "check_sizes", "image_of", "sliding_of", "whole"]

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


def check_sizes(node: Node) -> None:
    """Raises Unsupported unless the layer's settings say what its tensors and outputs are.

    Loops take their bounds from a layer's settings; PyTorch takes them from the tensors. A weight that was
    replaced by a smaller one, or a bias of one number that PyTorch broadcasts, would be read past its end.
    """
    module: Any = node.module
    expected: tuple[int, ...] = node.seen[0]
    tensors: dict[str, tuple[int, ...]] = {}
    if node.kind in ("linear", "delayed"):
        expected = (module.out_features,)
        names = ("weight",) if node.kind == "linear" else ("weight", "delay")
        tensors = dict.fromkeys(names, (module.out_features, node.seen[0][0]))
    elif node.kind in ("window", "convolution"):
        channels, *sides = node.seen[0]
        kernel = (module.kernel_size,) if node.kind == "window" else tuple(module.kernel_size)
        expected = (module.out_channels, *(sides if node.kind == "window" else _sides(node)))
        tensors["weight"] = (module.out_channels, channels // module.groups, *kernel)
        if channels != module.in_channels:
            tensors["weight"] = (module.out_channels, -1, *kernel)
    elif node.kind in ("maximum", "average"):
        expected = (node.seen[0][0], *_sides(node))
    elif node.kind == "delayed recurrent":
        tensors = {"recurrent.weight": expected * 2, "recurrent.delay": expected * 2}
    if getattr(module, "bias", None) is not None:
        tensors["bias"] = expected[:1]
    sizes = {name: tuple(operator.attrgetter(name)(module).shape) for name in tensors}
    if node.shape != expected or sizes != tensors:
        raise Unsupported(
            f"layer {node.name!r}: the settings of {type(module).__name__} say that it gives {expected} with "
            f"{tensors}, but it gives {node.shape} with {sizes}"
        )


def _sides(node: Node) -> tuple[int, ...]:
    """Height and width that a convolution or a pooling gives by its settings, or the length of a sequence."""
    window = sliding_of(node)
    padding = [2 * p for p in window.padding]
    if cast(Any, node.module).padding == "same":
        padding = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
    reach = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
    each = zip(window.image, padding, reach, window.stride, strict=True)
    return tuple((i + p - r - 1) // s + 1 for i, p, r, s in each)[3 - len(node.shape) :]


def image_of(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an image, or of a sequence as one of height 1."""
    channels, *sides = shape
    return (channels, 1, sides[0]) if len(sides) == 1 else (channels, sides[0], sides[1])


def channels_last(shape: Sequence[int]) -> Tensor:
    """Which number of PyTorch's lies where, in channels, or an image of them, that lie channels last."""
    size = math.prod(shape)
    return torch.arange(size, dtype=torch.int64, device="cpu").view(shape[0], -1).T.flatten()


def whole(numbers: Iterable[int]) -> Tensor:
    """Numbers as a tensor of them: shapes and places."""
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")
