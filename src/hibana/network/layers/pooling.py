"""Max and average pooling over images and sequences; means over a whole image."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.graph import Node, Shape
from hibana.network.layers.base import Call, Operations
from hibana.network.layers.sliding import SlidingKind, seen_by
from hibana.network.lowering import Activations, Lowering, in_order, spread
from hibana.network.nir_node import NirNode, integers
from hibana.network.onnx_export import OnnxStep
from hibana.network.sliding_window import channels_last, image_shape, sliding_window
from hibana.nn.each_step import EachStep
from hibana.runtime.kernels import BYTE, Pointer, Value

__all__ = ["Average", "Maximum", "Mean"]


class Mean(nn.AvgPool2d):
    """The mean over an image or a sequence: a pooling whose window is all of it."""


class Pooling(SlidingKind):
    """What both kinds share."""

    def check(self, node: Node) -> None:
        if not isinstance(node.module, Mean):
            super().check(node)
        if node.module.ceil_mode:
            self.refuse_setting(node, "ceil_mode")
        self.require(node, self.expected_shape(node, node.input_shapes[0][0]), {})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        taps = sliding_window(node).taps * image_shape(node.shape)[0]
        return Operations(taps, taps, 0)


class Maximum(Pooling):
    """``nn.MaxPool1d`` and ``nn.MaxPool2d``, without dilation."""

    name = "maximum"
    types = TORCH_LAYERS["maximum"]

    def check(self, node: Node) -> None:
        super().check(node)
        if node.module.dilation not in (1, (1,), (1, 1)):
            self.refuse_setting(node, "dilation")

    def title(self, node: Node) -> str:
        return "max-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        return step.op("MaxPool", inputs, **self.onnx_settings(node))

    def lower(self, node: Node, to: Lowering) -> Activations:
        read, last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        channels, _, width = image_shape(node.shape)
        if read.bits is not None and last and channels % 8 == 0:
            return _any(to, node, read, channels // 8)
        if not read.binary:

            def larger(found: Value, there: Value) -> Value:
                above = there > found
                return (above | there.differs(there) if there.type.real else above).select(there, found)

            return _pooled(to, node, read, last, to.lowest(), larger, lambda found, _: found)
        out = to.temporary(node.size, binary=True)
        out.clear(node.size)
        with to.each_active(read) as (i, _), seen_by(to, node, i, last) as (c, _ky, _kx, oy, ox):
            image = node.size // channels
            out[(oy * width + ox) * channels + c if last else c * image + oy * width + ox] = 1
        return Activations(node, channels_last(node.shape) if last else in_order(node.size), out, binary=True)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        raise ValueError("NIR has no max-pooling; train with average pooling, or stride the convolution")


class Average(Pooling):
    """``nn.AvgPool1d`` and ``nn.AvgPool2d``, and a mean over all but the channels."""

    name = "average"
    types = TORCH_LAYERS["average"]
    functions = (torch.mean, "mean")
    nir_types = ("SumPool2d", "AvgPool2d")

    def read(self, call: Call) -> Node:
        if hasattr(call.module, "kernel_size"):
            return super().read(call)
        (seen,) = call.input_shapes
        if call.module is None and not _is_over_sides(call):
            raise Unsupported(f"{call.where}: mean must be over all sides of an image")
        if call.module is not None and {*call.shape[1:]} != {1}:
            kind = type(call.module).__name__
            raise Unsupported(f"{call.where}: {kind} must leave one pixel, got {call.shape}")
        channels, *sides = seen
        window = Mean(cast(Any, tuple(sides)))  # a sequence has one side
        node = Node(call.name, self, window, call.inputs, call.input_shapes, (channels, *(1 for _ in sides)))
        self.check(node)
        return node

    def title(self, node: Node) -> str:
        return "avg-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        module = node.module
        settings = self.onnx_settings(node)
        mean = step.op("AveragePool", inputs, count_include_pad=int(module.count_include_pad), **settings)
        divisor = getattr(module, "divisor_override", None)
        if divisor is None:
            return mean
        return step.op("Mul", [mean, step.number(math.prod(settings["kernel_shape"]) / divisor)])

    def lower(self, node: Node, to: Lowering) -> Activations:
        module = node.module
        window = sliding_window(node)
        read, last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        divisor = getattr(module, "divisor_override", None)
        area = divisor or window.kernel[0] * window.kernel[1]
        counted = not (divisor or module.count_include_pad) and any(window.padding)
        element = to.number.element

        def divided(found: Value, count: Value) -> Value:
            by = count.real(element) if counted else to.code.constant(area, element)
            return found if area == 1 else found / spread(by, found.type.width)

        zero = to.code.constant(0, element)
        return _pooled(to, node, read, last, zero, lambda found, there: found + there, divided)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        module = node.module
        self.check_sample(node.input_shapes[0], 2)
        sizes = {k: np.broadcast_to(getattr(module, k), 2) for k in ("kernel_size", "stride", "padding")}
        if module.divisor_override not in (None, 1):
            raise ValueError(f"NIR sums or averages, got divisor_override={module.divisor_override}")
        if module.divisor_override is None and not module.count_include_pad and sizes["padding"].any():
            raise ValueError("NIR averages over the padding too, got count_include_pad=False")
        return NirNode("SumPool2d" if module.divisor_override else "AvgPool2d", sizes)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        self.check_sample(shape, 2)
        sizes: Any = {key: integers(node.fields, key) for key in ("kernel_size", "stride", "padding")}
        return EachStep(nn.AvgPool2d(**sizes, divisor_override=1 if node.type == "SumPool2d" else None))


def _is_over_sides(call: Call) -> bool:
    """Whether a mean is over height and width, and these alone."""
    seen: Shape = call.input_shapes[0]
    if len(seen) not in (2, 3) or not (call.arguments or "dim" in call.named):
        return False
    blank = torch.empty([2] * (call.leading + len(seen)), dtype=torch.float32, device="meta")
    kept = torch.mean(blank, *call.arguments, **{**call.named, "keepdim": True}).shape
    return tuple(kept) == (*[2] * (call.leading + 1), *(1 for _ in seen[1:]))


def _any(to: Lowering, node: Node, read: Activations, octets: int) -> Activations:
    """Max pooling of spikes as bits; a pixel consists of `octets` whole bytes."""
    assert read.bits is not None
    out = to.bits(node.size)
    out.clear(-(-node.size // 64) * 8)
    zero = to.code.constant(0, BYTE)
    with to.registers(octets) as parts:
        _fold(to, node, read.bits, out, octets, parts, zero, lambda a, b: a | b, lambda found, _: found)
    return Activations(node, channels_last(node.shape), bits=out, binary=True)


def _pooled(
    to: Lowering, node: Node, read: Activations, last: bool, first: Value, folded: Any, result: Any
) -> Activations:
    """Folds the numbers under each window, starting with `first`."""
    window, (channels, height, width) = sliding_window(node), image_shape(node.shape)
    numbers, out = to.numbers(read), to.temporary(node.size)
    if last:
        with to.registers(channels) as parts:
            _fold(to, node, numbers, out, channels, parts, first, folded, result)
        return Activations(node, channels_last(node.shape), out)
    with to.code.loop(0, channels, name="c") as c:
        image = (numbers + c * (window.image[0] * window.image[1])).named("image")
        pixels = (out + c * (height * width)).named("pixels")
        _fold(to, node, image, pixels, 1, [(0, 1)], first, folded, result)
    return Activations(node, in_order(node.size), out)


def _fold(
    to: Lowering,
    node: Node,
    source: Pointer,
    target: Pointer,
    stride: int,
    parts: list[tuple[Any, int]],
    first: Value,
    folded: Callable[[Value, Value], Value],
    result: Callable[[Value, Value], Value],
) -> None:
    """Folds the pixels under each window of `node`.

    Args:
        to: the code of the step.
        node: a pooling layer.
        source: the image; pixels are `stride` elements apart.
        target: the pooled image, of which likewise.
        stride: elements of a pixel.
        parts: the vectors of a pixel.
        first: what each fold begins with.
        folded: a fold's next value, from its last one and a pixel under the window.
        result: the number that is stored, from a fold's last value and the number of pixels.
    """
    code, window, width = to.code, sliding_window(node), image_shape(node.shape)[2]
    with code.loop(0, window.outputs[0], name="oy") as oy, code.loop(0, window.outputs[1], name="ox") as ox:
        ranges = []
        for axis, (at, low, high) in enumerate(((oy, "top", "bottom"), (ox, "left", "right"))):
            begin = at * window.stride[axis] - window.padding[axis]
            end = (begin + window.kernel[axis]).smaller(code.constant(window.image[axis]))
            ranges.append((begin.larger(code.constant(0)).named(low), end.named(high)))
        totals = [(at, n, code.variable(spread(first, n))) for at, n in parts]
        with code.loop(*ranges[0], name="y") as y, code.loop(*ranges[1], name="x") as x:
            pixel = source + (y * window.image[1] + x) * stride
            for at, n, found in totals:
                there = (pixel + at).load(n).named("there")
                found.value = folded(found.value, there)
        (top, bottom), (left, right) = ranges
        count = (bottom - top) * (right - left)
        for at, _, found in totals:
            (target + ((oy * width + ox) * stride + at)).store(result(found.value, count))
