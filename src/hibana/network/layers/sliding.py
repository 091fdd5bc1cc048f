"""Kinds of layers whose kernel slides over an image or a sequence: convolutions and poolings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hibana.compiler.torch_layers import spatial_dims
from hibana.network.layers.base import LayerKind
from hibana.network.lowering import Lowering
from hibana.network.node import Node, Shape
from hibana.runtime.kernels import Value

__all__ = ["SlidingKind", "SlidingWindow", "each_output_of", "image_shape", "sliding_window"]

Pair = tuple[int, int]


class SlidingKind(LayerKind):
    """A kernel over samples ``[channels, width]`` or ``[channels, height, width]``."""

    def check(self, node: Node) -> None:
        """Raises Unsupported unless samples are ``[channels, width]`` or ``[channels, height, width]``."""
        (shape,), module = node.input_shapes, node.module
        sides, kind = spatial_dims(module), type(module).__name__
        if sides > 2 or not hasattr(module, "kernel_size"):
            self.refuse_setting(node, kind)
        if len(shape) != sides + 1:
            self.refuse_setting(node, f"{kind} on samples of shape {shape}, which have no channels,")

    def check_sample(self, shape: Shape, sides: int) -> None:
        """Raises ValueError unless samples of `shape` have channels and as many `sides`."""
        if len(shape) != sides + 1:
            raise ValueError(f"takes channels in {sides} dimensions, but gets the shape {shape}")

    def expected_shape(self, node: Node, channels: int) -> Shape:
        """The shape of one sample of the output that the layer's settings imply."""
        w = sliding_window(node)
        sides = zip(w.image, w.padding, w.end_padding, w.dilation, w.kernel, w.stride, strict=True)
        outputs = [
            (side + before + after - dilation * (taps - 1) - 1) // stride + 1
            for side, before, after, dilation, taps, stride in sides
        ]
        return (channels, *outputs[3 - len(node.shape) :])

    def onnx_settings(self, node: Node) -> dict[str, Any]:
        """Kernel, strides and pads as attributes of an ONNX node."""
        # pairs are (height, width): the slice keeps both for an image, and the width alone for a sequence
        window, sides = sliding_window(node), slice(3 - len(node.shape), None)
        pads = [*window.padding][sides] + [*window.end_padding][sides]
        return {"kernel_shape": window.kernel[sides], "strides": window.stride[sides], "pads": pads}


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


@contextmanager
def each_output_of(
    to: Lowering, node: Node, i: Value, channels_last: bool
) -> Iterator[tuple[Value, Value, Value, Value, Value]]:
    """A loop over the output pixels whose window contains place `i` of the input image.

    Args:
        to: the code of the step.
        node: a convolution or a pooling.
        i: a place in memory of the input image.
        channels_last: whether channels are last in memory, rather than first.

    Yields:
        The channel of `i`, the row and column of the tap, and the row and column of the output pixel.
    """
    window = sliding_window(node)
    channels, height, width = image_shape(node.input_shapes[0])
    if channels_last:
        c, row, column = i % channels, i // channels // width, i // channels % width
    else:
        c, row, column = i // (height * width), i // width % height, i % width
    c, row, column = c.named("c"), row.named("row"), column.named("column")

    @contextmanager
    def output(tap: Value, pixel: Value, axis: int, name: str) -> Iterator[Value]:
        """A branch, taken if kernel entry `tap` of some output is on `pixel`; yields the output's index."""
        stride = window.stride[axis]
        offset = (pixel + window.padding[axis] - tap * window.dilation[axis]).named(name)
        output_index = offset // stride
        inside = (offset >= 0) & (output_index < window.outputs[axis])
        with to.code.when(inside if stride == 1 else inside & (offset % stride).equals(0)):
            yield output_index

    with (
        to.code.loop(0, window.kernel[0], name="ky") as ky,
        output(ky, row, 0, "y") as oy,
        to.code.loop(0, window.kernel[1], name="kx") as kx,
        output(kx, column, 1, "x") as ox,
    ):
        yield c, ky, kx, oy, ox
