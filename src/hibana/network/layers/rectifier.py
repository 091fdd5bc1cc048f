"""Rectifiers between layers: ``nn.ReLU``, ``nn.ReLU6`` and ``nn.PReLU``."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.c.integers import Bounds
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers.base import Call, IntegerLayer, LayerKind
from hibana.network.lowering import Activations, Lowering
from hibana.network.node import Node
from hibana.network.onnx_step import OnnxStep
from hibana.nn.layers import with_gradient
from hibana.runtime.kernels import Value

__all__ = ["IntegerRectifier", "Rectifier"]

_GAIN = 128
"""What integers are multiplied by where a slope of ``nn.PReLU`` applies to negative ones."""


class IntegerRectifier(nn.Module):
    """A rectifier of integers, whose outputs have at most 8 bits.

        y = min(round(gain max(x, 0) / 2^shift), limit) - min(round(slope max(-x, 0) / 2^shift), limit)

    `gain` and `slope` are integers. Halves are rounded up.
    """

    slopes: Tensor

    def __init__(self, layer: IntegerLayer, slopes: Tensor, highest: float) -> None:
        super().__init__()
        self.gain = _GAIN if bool(slopes.count_nonzero()) else 1
        self.register_buffer("slopes", (slopes.detach().double() * self.gain).round())
        low, high = layer.value_range
        self.largest = max(-low, high)
        """The largest output on the calibration data, in units of the float network."""
        self.limit = 127 if low < 0 else 255
        self.highest, self.top, self.shift = highest, self.limit, 0
        """The largest output of the float layer, its integer, and the exponent of the divisor."""

    def set_scale(self, scale: float) -> float:
        """Sets the divisor for inputs in units of `scale`; returns the unit of the outputs."""
        unit = scale / self.gain
        self.shift = max(0, math.ceil(math.log2(max(self.largest / (unit * self.limit), 1.0))))
        unit *= 2.0**self.shift
        self.top = min(self.limit, round(min(self.highest, 2.0**31 * unit) / unit))
        return unit

    def forward(self, inputs: Tensor) -> Tensor:
        """The rectified integers; the gradient passes straight through the rounding."""
        slopes = self.slopes.to(inputs.dtype).view(
            -1, *[1] * (inputs.ndim - 2)
        )  # of channels, in dimension 1
        half, divisor = (1 << self.shift) // 2, 2**self.shift
        positive, negative = inputs.clamp(min=0) * self.gain, (-inputs).clamp(min=0) * slopes
        real = (positive / divisor).clamp(max=self.top) - (negative / divisor).clamp(-self.limit, self.limit)
        up = ((positive + half) / divisor).floor().clamp(max=self.top)
        down = ((negative.abs() + half) / divisor).floor().clamp(max=self.limit) * slopes.sign()
        return with_gradient((up - down).detach(), real, 1.0)


class Rectifier(LayerKind):
    """``max(x, 0) + slope min(x, 0)``, at most `highest`; the slope is 0 but for ``nn.PReLU``."""

    name = "rectifier"
    types = (nn.ReLU, nn.ReLU6, nn.PReLU, IntegerRectifier)
    functions = (torch.relu, functional.relu, functional.relu6, "relu", "relu_")
    elementwise = has_integers = True

    def read(self, call: Call) -> Node:
        """The node of `call`; a function becomes a module."""
        if call.node.module is None:
            module = nn.ReLU6() if call.function is functional.relu6 else nn.ReLU()
            return super().read(replace(call, node=replace(call.node, module=module)))
        return super().read(call)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Relu``, a ``Clip`` or a ``PRelu``."""
        module = node.module
        if isinstance(module, nn.PReLU):
            return step.op("PRelu", [*inputs, step.constant(_per_channel(_slopes(module), node))])
        if isinstance(module, nn.ReLU6):
            return step.op("Clip", [*inputs, step.number(0.0), step.number(6.0)])
        return step.op("Relu", inputs)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops over the numbers."""
        inputs, module = to.activations[node.inputs[0]], node.module
        numbers, out, slopes = to.numbers(inputs), to.temporary(node.size), _slopes(module)
        has_slopes = bool(slopes.count_nonzero())
        if has_slopes:
            per_sample = _per_channel(slopes, node).expand(node.shape).flatten()[inputs.order]
            slope_numbers = to.constant(per_sample)
        for offset, width in to.vectors(node.size):
            x = (numbers + offset).load(width).named("x")
            slope = (slope_numbers + offset).load(width) if has_slopes else None
            rectified = _integer if isinstance(module, IntegerRectifier) else _real
            (out + offset).store(rectified(module, x, slope))
        return Activations(node, inputs.order, out)

    def integer_module(self, layer: IntegerLayer, module: Any) -> nn.Module:
        """The :class:`IntegerRectifier` of `module`."""
        if isinstance(module, IntegerRectifier):
            raise Unsupported(f"layer {layer.name!r} is called several times; use one module per call")
        return IntegerRectifier(layer, _slopes(module), 6.0 if isinstance(module, nn.ReLU6) else math.inf)

    def integer_scale(self, layer: IntegerLayer, module: Any, scales: list[Tensor]) -> Tensor:
        """The scale of the input times the power of two that leaves 8 bits of the calibration's outputs."""
        return scales[0].new_tensor(module.set_scale(float(layer.one_scale(scales[0]))))

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """The bounds of the products, with half the divisor added, and of the output."""
        (low, high), module = inputs[0], node.module
        half, slope = (1 << module.shift) // 2, int(module.slopes.abs().max())
        up, down = max(high, 0) * module.gain + half, max(-low, 0) * slope + half
        top, bottom = min(up >> module.shift, module.top), min(down >> module.shift, module.limit)
        has_negative, has_positive = bool((module.slopes > 0).any()), bool((module.slopes < 0).any())
        lowest = -bottom if has_negative else 0
        return [(0, up), (0, down), (lowest, max(top, bottom if has_positive else 0))]


def _slopes(module: Any) -> Tensor:
    """The slopes for negative inputs, ``[1]`` or ``[channels]``."""
    if isinstance(module, IntegerRectifier):
        return module.slopes
    return (
        module.weight.detach()
        if isinstance(module, nn.PReLU)
        else torch.zeros(1, dtype=torch.float32, device="cpu")
    )


def _per_channel(slopes: Tensor, node: Node) -> Tensor:
    """`slopes` with the dimensions of a sample of `node`."""
    return slopes.view(-1, *[1] * (len(node.shape) - 1))


def _real(module: Any, x: Value, slope: Value | None) -> Value:
    """The rectified `x`; NaN stays NaN."""
    if slope is not None:
        return (x > 0).select(x, x * slope)
    positive = (x < 0).select(0, x)
    return (positive > 6).select(6, positive) if isinstance(module, nn.ReLU6) else positive


def _integer(module: IntegerRectifier, x: Value, slope: Value | None) -> Value:
    """The rectified integer `x`; see :class:`IntegerRectifier`."""
    half = (1 << module.shift) // 2

    def part(product: Value, limit: int) -> Value:
        """A product that is not negative, divided by the divisor, rounded, and limited."""
        rounded = ((product + half) >> module.shift) if module.shift else product
        return rounded.named("rounded").smaller(x.lift(limit))

    positive = x.larger(x.lift(0)).named("positive")
    up = part(positive * module.gain if module.gain > 1 else positive, module.top)
    if slope is None:
        return up
    negative, slope = (0 - x).larger(x.lift(0)).named("negative"), slope.named("slope")
    size = part(negative * (slope < 0).select(0 - slope, slope), module.limit).named("size")
    return up + (slope < 0).select(size, 0 - size)
