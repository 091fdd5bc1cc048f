"""Max and average pooling over images and sequences; means over a whole image."""

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node, Shape
from hibana.network.layers.base import Call, Operations
from hibana.network.layers.sliding import SlidingKind
from hibana.network.nir_node import NirNode, pair
from hibana.network.sliding import image_of, sliding_of
from hibana.nn.each_step import EachStep

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

    def to_nir(self, node: Node, dt: float) -> NirNode:
        raise ValueError("NIR has no max-pooling; train with average pooling, or stride the convolution")


class Average(Pooling):
    """``nn.AvgPool1d`` and ``nn.AvgPool2d``, and a mean over all but the channels."""

    name = "average"
    types = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    functions = (torch.mean, "mean")
    nir_types = ("SumPool2d", "AvgPool2d")

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

    def to_nir(self, node: Node, dt: float) -> NirNode:
        module = node.module
        self.check_sample(node.seen[0], 2)
        sizes = {k: np.broadcast_to(getattr(module, k), 2) for k in ("kernel_size", "stride", "padding")}
        if module.divisor_override not in (None, 1):
            raise ValueError(f"NIR sums or averages, got divisor_override={module.divisor_override}")
        if module.divisor_override is None and not module.count_include_pad and sizes["padding"].any():
            raise ValueError("NIR averages over the padding too, got count_include_pad=False")
        return NirNode("SumPool2d" if module.divisor_override else "AvgPool2d", sizes)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        self.check_sample(shape, 2)
        sizes: Any = {key: pair(node.fields, key) for key in ("kernel_size", "stride", "padding")}
        return EachStep(nn.AvgPool2d(**sizes, divisor_override=1 if node.type == "SumPool2d" else None))


def _is_over_sides(call: Call) -> bool:
    """Whether a mean is over height and width, and these alone."""
    seen: Shape = call.seen[0]
    if len(seen) not in (2, 3) or not (call.arguments or "dim" in call.named):
        return False
    blank = torch.empty([2] * (call.leading + len(seen)), dtype=torch.float32, device="meta")
    kept = torch.mean(blank, *call.arguments, **{**call.named, "keepdim": True}).shape
    return tuple(kept) == (*[2] * (call.leading + 1), *(1 for _ in seen[1:]))
