"""Max and average pooling over images and sequences; means over an entire image."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana.cells.spiking import Spiking
from hibana.compiler.c.integers import Bounds
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.layers.base import Call, IntegerLayer, Operations
from hibana.network.layers.sliding import (
    SlidingKind,
    SlidingWindow,
    each_output_of,
    image_shape,
    sliding_window,
)
from hibana.network.lowering import Activations, Lowering, spread
from hibana.network.nir_node import NirNode, integers
from hibana.network.node import Node, Shape, channels_last, in_order
from hibana.network.onnx_step import OnnxStep
from hibana.nn.each_step import EachStep
from hibana.runtime.kernels import BYTE, Pointer, Value

__all__ = ["Average", "Maximum", "Mean", "WindowSum"]


class Mean(nn.AvgPool2d):
    """The mean over an image or a sequence: a pooling whose window is the entire image."""


class WindowSum(Mean):
    """Sums over windows of images or sequences, which average poolings become in integers.

    The input may have any number of dimensions before the channels.
    """

    def __init__(self, window: SlidingWindow, divisor: int, *, is_sequence: bool) -> None:
        super().__init__(window.kernel, window.stride, window.padding, divisor_override=1)
        self.window, self.sides = window, 1 if is_sequence else 2
        self.divisor = divisor
        """The divisor of the average, which the scale of the integers takes up."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        """The sums ``[..., channels, height, width]``, or ``[..., channels, length]`` of sequences."""
        leading, image = input.shape[: -self.sides - 1], input.shape[-self.sides - 1 :]
        sums = super().forward(input.reshape(-1, *image_shape(image)))
        return sums.reshape(*leading, image[0], *sums.shape[4 - self.sides :])


class Pooling(SlidingKind):
    """The checks and the operation count of both kinds of pooling."""

    has_integers = keeps_channels = True

    def check(self, node: Node) -> None:
        """Raises Unsupported for ``ceil_mode``, or an output of another shape than the settings."""
        if not isinstance(node.module, Mean):
            super().check(node)
        if node.module.ceil_mode:
            self.refuse_setting(node, "ceil_mode")
        self.require(node, self.expected_shape(node, node.input_shapes[0][0]), {})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One operation for each pixel under each window."""
        taps = sliding_window(node).taps * image_shape(node.shape)[0]
        return Operations(taps, taps, 0)


class Maximum(Pooling):
    """``nn.MaxPool1d`` and ``nn.MaxPool2d``, without dilation."""

    name = "maximum"
    types = TORCH_LAYERS["maximum"]

    def check(self, node: Node) -> None:
        """Raises Unsupported for dilation, and for the settings that no pooling supports."""
        super().check(node)
        if node.module.dilation not in (1, (1,), (1, 1)):
            self.refuse_setting(node, "dilation")

    def title(self, node: Node) -> str:
        """The name of the layer in tables."""
        return "max-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``MaxPool`` of the input."""
        return step.op("MaxPool", inputs, **self.onnx_settings(node))

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops over windows; for binary inputs a union of their bits, or a loop over the ones."""
        inputs, is_channels_last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        channels, _, width = image_shape(node.shape)
        if inputs.bits is not None and is_channels_last and channels % 8 == 0:
            bits = to.bits(node.size)
            bits.clear(-(-node.size // 64) * 8)
            union = _Fold(to.code.constant(0, BYTE), lambda total, octet: total | octet)
            with to.registers(channels // 8) as octets:
                _fold_windows(to, node, union, inputs.bits, bits, channels // 8, octets)
            return Activations(node, channels_last(node.shape), bits=bits, binary=True)
        if not inputs.binary:
            return _pooled(to, node, inputs, is_channels_last, _Fold(to.lowest(), _maximum))
        out = to.temporary(node.size, binary=True)
        out.clear(node.size)
        with (
            to.each_nonzero(inputs) as (i, _),
            each_output_of(to, node, i, is_channels_last) as (c, _ky, _kx, oy, ox),
        ):
            pixel = oy * width + ox
            place = pixel * channels + c if is_channels_last else c * (node.size // channels) + pixel
            out[place] = 1
        order = channels_last(node.shape) if is_channels_last else in_order(node.size)
        return Activations(node, order, out, binary=True)

    def to_nir(self, node: Node, dt: float) -> tuple[NirNode, ...]:
        """The sum of spikes, and neurons without memory, tau = dt, that spike if the sum is above a half.

        Raises ValueError if the input is not spikes, because NIR has no maximum.
        """
        source = node.inputs[0]
        while source.kind == "maximum":
            source = source.inputs[0]
        cell = getattr(source.module, "cell", None)
        if not isinstance(cell, Spiking) or getattr(cell, "most_spikes", 1) > 1:
            raise ValueError(f"NIR has max-pooling only of spikes, not of the output of {source.name!r}")
        self.check_sample(node.input_shapes[0], 2)
        values = {"tau": dt, "r": 1.0, "v_leak": 0.0, "v_threshold": 0.5, "v_reset": 0.0}
        fields = {name: np.full(node.shape, value) for name, value in values.items()}
        return _window_node("SumPool2d", node.module), NirNode("LIF", fields, {"tau_steps": 1.0})


class Average(Pooling):
    """``nn.AvgPool1d`` and ``nn.AvgPool2d``, and a mean over all dimensions but the channels."""

    name = "average"
    types = TORCH_LAYERS["average"]
    functions = (torch.mean, "mean")
    nir_types = ("SumPool2d", "AvgPool2d")

    def read(self, call: Call) -> Node:
        """The node of `call`; a mean without a window becomes a window of the entire image."""
        node, module = call.node, call.node.module
        if hasattr(module, "kernel_size"):
            return super().read(call)
        if module is None and not _is_over_sides(call):
            raise Unsupported(f"{call.where}: mean must be over all sides of an image")
        if module is not None and {*node.shape[1:]} != {1}:
            kind = type(module).__name__
            raise Unsupported(f"{call.where}: {kind} must leave one pixel, got {node.shape}")
        channels, *sides = node.input_shapes[0]
        window = Mean(cast(Any, tuple(sides)))  # a sequence has one side
        node = replace(node, module=window, shape=(channels, *(1 for _ in sides)))
        self.check(node)
        return node

    def title(self, node: Node) -> str:
        """The name of the layer in tables."""
        return "avg-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes an ``AveragePool``, rescaled if the module has another divisor."""
        module, settings = node.module, self.onnx_settings(node)
        mean = step.op("AveragePool", inputs, count_include_pad=int(module.count_include_pad), **settings)
        divisor = getattr(module, "divisor_override", None)
        if divisor is None:
            return mean
        return step.op("Mul", [mean, step.number(math.prod(settings["kernel_shape"]) / divisor)])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add the pixels of each window, and divide by the divisor or their number."""
        module, window, element = node.module, sliding_window(node), to.number.element
        inputs, is_channels_last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        divisor = getattr(module, "divisor_override", None)
        area = divisor or window.kernel[0] * window.kernel[1]
        divides_by_count = not (divisor or module.count_include_pad) and any(window.padding)

        def mean(total: Value, count: Value) -> Value:
            """The sum `total` of `count` pixels divided by the divisor, or by `count` without padding."""
            number = count.real(element) if divides_by_count else to.code.constant(area, element)
            return total if area == 1 else total / spread(number, total.type.width)

        fold = _Fold(to.code.constant(0, element), lambda total, pixel: total + pixel, mean)
        return _pooled(to, node, inputs, is_channels_last, fold)

    def integer_module(self, layer: IntegerLayer, module: Any) -> nn.Module:
        """The sums over the windows; raises Unsupported if pixels outside of the image are not counted."""
        if not hasattr(module, "kernel_size"):
            module = Mean(cast(Any, layer.input_shapes[0][1:]))
        window = sliding_window(Node(layer.name, self.name, module, (), layer.input_shapes, layer.shape))
        if isinstance(module, WindowSum) and module.window == window:
            return module
        if isinstance(module, WindowSum):
            raise Unsupported(f"layer {layer.name!r} is called on images of different sizes")
        if any(window.padding) and not module.count_include_pad:
            kind = type(module).__name__
            raise Unsupported(
                f"layer {layer.name!r}: {kind} with count_include_pad=False has no integer form"
            )
        divisor = getattr(module, "divisor_override", None) or math.prod(window.kernel)
        return WindowSum(window, divisor, is_sequence=len(layer.shape) == 2)

    def integer_scale(self, layer: IntegerLayer, module: Any, scales: list[Tensor]) -> Tensor:
        """The scale of the input divided by the divisor, since integers are summed."""
        divisor: int = module.divisor
        return scales[0] / divisor

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """The bounds of the sums of all pixels under a window; pixels outside of the image are 0."""
        (low, high), taps = inputs[0], math.prod(sliding_window(node).kernel)
        return [(min(0, low * taps), max(0, high * taps)) if taps > 1 else (low, high)]

    def to_nir(self, node: Node, dt: float) -> NirNode | tuple[NirNode, ...]:
        """An ``AvgPool2d node; ``SumPool2d`` for the divisor 1, followed by a ``Scale`` for others."""
        module = node.module
        self.check_sample(node.input_shapes[0], 2)
        pads = bool(np.any(module.padding)) and not module.count_include_pad
        if module.divisor_override is None and not pads:
            return _window_node("AvgPool2d", module)
        sums = _window_node("SumPool2d", module)
        if module.divisor_override == 1:
            return sums
        ones = torch.ones(node.input_shapes[0], dtype=torch.float64, device="cpu")
        window = (module.kernel_size, module.stride, module.padding)
        counts = nn.functional.avg_pool2d(ones, *window, divisor_override=1)
        return sums, NirNode("Scale", {"scale": (module(ones) / counts).numpy()})

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The pooling of the node, called at each step."""
        self.check_sample(shape, 2)
        sizes: Any = {key: integers(node.fields, key) for key in ("kernel_size", "stride", "padding")}
        return EachStep(nn.AvgPool2d(**sizes, divisor_override=1 if node.type == "SumPool2d" else None))


def _window_node(kind: str, module: Any) -> NirNode:
    """The NIR node of type `kind` with the window of `module`, a pooling over images."""
    return NirNode(
        kind, {k: np.broadcast_to(getattr(module, k), 2) for k in ("kernel_size", "stride", "padding")}
    )


def _is_over_sides(call: Call) -> bool:
    """Whether `call`, a mean without a module, is over exactly the height and width of samples."""
    shape = call.node.input_shapes[0]
    if len(shape) not in (2, 3) or not (call.arguments or "dim" in call.named):
        return False
    example = torch.empty([2] * (call.leading + len(shape)), dtype=torch.float32, device="meta")
    mean = torch.mean(example, *call.arguments, **{**call.named, "keepdim": True})
    return tuple(mean.shape) == (*[2] * (call.leading + 1), *(1 for _ in shape[1:]))


class _Fold(NamedTuple):
    """A reduction of the pixels under a window to one number."""

    first: Value
    """The total before the first pixel."""
    combine: Callable[[Value, Value], Value]
    """The next total, from the total and a pixel."""
    result: Callable[[Value, Value], Value] = lambda total, _: total
    """The output, from the last total and the number of pixels."""


def _maximum(total: Value, pixel: Value) -> Value:
    """The larger of two numbers; NaN if `pixel` is NaN."""
    replaces = pixel > total
    if pixel.type.real:
        is_nan = pixel.differs(pixel)
        replaces = replaces | is_nan
    return replaces.select(pixel, total)


def _pooled(
    to: Lowering, node: Node, inputs: Activations, is_channels_last: bool, fold: _Fold
) -> Activations:
    """The output of the pooling `node`: a `fold` of each window of `inputs`, an image.

    `is_channels_last` says whether the channels of the image are last in memory, rather than first.
    """
    window, (channels, height, width) = sliding_window(node), image_shape(node.shape)
    numbers, out = to.numbers(inputs), to.temporary(node.size)
    if is_channels_last:
        with to.registers(channels) as parts:
            _fold_windows(to, node, fold, numbers, out, channels, parts)
        return Activations(node, channels_last(node.shape), out)
    with to.code.loop(0, channels, name="c") as c:
        image = (numbers + c * (window.image[0] * window.image[1])).named("image")
        pixels = (out + c * (height * width)).named("pixels")
        _fold_windows(to, node, fold, image, pixels, 1, [(0, 1)])
    return Activations(node, in_order(node.size), out)


def _fold_windows(
    to: Lowering,
    node: Node,
    fold: _Fold,
    source: Pointer,
    target: Pointer,
    stride: int,
    parts: list[tuple[Value | int, int]],
) -> None:
    """Writes loops that fold the pixels under each window of `node`.

    Args:
        to: the code of the step.
        node: a pooling layer.
        fold: the reduction.
        source: the input image.
        target: the pooled image.
        stride: elements of a pixel, in both images.
        parts: the offset and the width of each vector of a pixel.
    """
    code, window, width = to.code, sliding_window(node), image_shape(node.shape)[2]
    with code.loop(0, window.outputs[0], name="oy") as oy, code.loop(0, window.outputs[1], name="ox") as ox:
        ranges = []
        for axis, (i, low, high) in enumerate(((oy, "top", "bottom"), (ox, "left", "right"))):
            begin = i * window.stride[axis] - window.padding[axis]
            end = (begin + window.kernel[axis]).smaller(code.constant(window.image[axis]))
            ranges.append((begin.larger(code.constant(0)).named(low), end.named(high)))
        totals = [(offset, lanes, code.variable(spread(fold.first, lanes))) for offset, lanes in parts]
        with code.loop(*ranges[0], name="y") as y, code.loop(*ranges[1], name="x") as x:
            pixel_address = source + (y * window.image[1] + x) * stride
            for offset, lanes, total in totals:
                pixel = (pixel_address + offset).load(lanes).named("pixel")
                total.value = fold.combine(total.value, pixel)
        (top, bottom), (left, right) = ranges
        count = (bottom - top) * (right - left)
        for offset, _, total in totals:
            (target + ((oy * width + ox) * stride + offset)).store(fold.result(total.value, count))
