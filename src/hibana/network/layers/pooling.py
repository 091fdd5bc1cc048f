"""Max and average pooling over images and sequences; means over a whole image."""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node, Shape
from hibana.network.layers.base import Call, Operations
from hibana.network.layers.sliding import SlidingKind
from hibana.network.sliding import image_of, sliding_of

if TYPE_CHECKING:
    from hibana.network.scan import OnnxStep

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
        self.require(node, (node.seen[0][0], *self.output_sides(node)), {})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        taps = sliding_of(node).taps * image_of(node.shape)[0]
        return Operations(taps, taps, 0)


class Maximum(Pooling):
    """``nn.MaxPool1d`` and ``nn.MaxPool2d``, without dilation."""

    name = "maximum"
    types = (nn.MaxPool1d, nn.MaxPool2d)

    def check(self, node: Node) -> None:
        if node.module.dilation not in (1, (1,), (1, 1)):
            self.refuse_setting(node, "dilation")
        super().check(node)

    def title(self, node: Node) -> str:
        return "max-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        return step.op("MaxPool", inputs, **self.onnx_settings(node))


class Average(Pooling):
    """``nn.AvgPool1d`` and ``nn.AvgPool2d``, and a mean over all but the channels."""

    name = "average"
    types = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    functions = (torch.mean, "mean")

    def read(self, call: Call) -> Node:
        if isinstance(call.module, nn.AvgPool1d | nn.AvgPool2d):
            return super().read(call)
        (seen,) = call.seen
        if call.module is None and not _is_over_sides(call):
            raise Unsupported(f"{call.where}: mean must be over all sides of an image")
        if call.module is not None and {*call.shape[1:]} != {1}:
            kind = type(call.module).__name__
            raise Unsupported(f"{call.where}: {kind} must leave one pixel, got {call.shape}")
        channels, *sides = seen
        window = Mean(cast(Any, tuple(sides)))  # a sequence has one side
        node = Node(call.name, self, window, call.inputs, call.seen, (channels, *(1 for _ in sides)))
        self.check(node)
        return node

    def title(self, node: Node) -> str:
        return "avg-pooling"

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        module = node.module
        settings = self.onnx_settings(node)
        mean = step.op("AveragePool", inputs, count_include_pad=int(module.count_include_pad), **settings)
        divisor = getattr(module, "divisor_override", None)
        if divisor is None:
            return mean
        return step.op("Mul", [mean, step.number(math.prod(settings["kernel_shape"]) / divisor)])


def _is_over_sides(call: Call) -> bool:
    """Whether a mean is over height and width, and these alone."""
    seen: Shape = call.seen[0]
    if len(seen) not in (2, 3) or not (call.arguments or "dim" in call.named):
        return False
    blank = torch.empty([2] * (call.leading + len(seen)), dtype=torch.float32, device="meta")
    kept = torch.mean(blank, *call.arguments, **{**call.named, "keepdim": True}).shape
    return tuple(kept) == (*[2] * (call.leading + 1), *(1 for _ in seen[1:]))
