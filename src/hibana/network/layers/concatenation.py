"""``torch.cat`` of values of a network, along a dimension of samples."""

import torch
from torch import Tensor

from hibana.compiler.c.integers import Bounds
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers.base import Call, IntegerLayer, LayerKind, Operations
from hibana.network.lowering import Activations, Lowering
from hibana.network.node import Node, Shape, in_order
from hibana.network.onnx_step import OnnxStep

__all__ = ["Concatenation"]


class Concatenation(LayerKind):
    """Several values side by side, along one dimension of a sample."""

    name = "concatenation"
    functions = (torch.cat, torch.concat, torch.concatenate)
    has_integers = True

    def read(self, call: Call) -> Node:
        """The node of `call`, or its input if it has only one."""
        node, options = call.node, {**dict(zip(("dim",), call.arguments, strict=False)), **call.named}
        axis = options.get("dim", options.get("axis", 0))
        axis += call.leading + len(node.shape) if axis < 0 else 0
        if not {*options} <= {"dim", "axis"} or axis < call.leading:
            raise Unsupported(f"{call.where} must concatenate along a dimension of samples, got {options}")
        return node if len(node.inputs) > 1 else node.inputs[0]

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """No operations."""
        return Operations(0, 0, 0)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Concat``."""
        return step.op("Concat", inputs, axis=_axis(node.shape, node.input_shapes[0]) + 1)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that copy the inputs one after the other, each in its own order."""
        sources = [to.activations[source] for source in node.inputs]
        binary = all(source.binary for source in sources)
        axis = _axis(node.shape, node.input_shapes[0])
        sizes = [shape[axis] for shape in node.input_shapes]
        places = torch.split(in_order(node.size).view(node.shape), sizes, axis)
        out, start = to.temporary(node.size, binary=binary), 0
        for source in sources:
            numbers, target = to.numbers(source), out + start
            for offset, width in to.vectors(source.node.size):
                (target + offset).store((numbers + offset).load(width))
            start += source.node.size
        order = torch.cat([place.flatten()[s.order] for place, s in zip(places, sources, strict=True)])
        return Activations(node, order, out, binary=binary)

    def integer_scale(self, layer: IntegerLayer, module: object, scales: list[Tensor]) -> Tensor:
        """The scale of all inputs; one for each channel if they differ and channels are concatenated."""
        if all(scale.numel() == 1 and float(scale) == float(scales[0]) for scale in scales):
            return scales[0]
        if _axis(layer.shape, layer.input_shapes[0]) > 0:
            raise Unsupported(f"layer {layer.name!r} concatenates integers of different scales")
        ones = [1] * (len(layer.shape) - 1)
        channels = (shape[0] for shape in layer.input_shapes)
        return torch.cat(
            [s.reshape(-1, *ones).expand(n, *ones) for s, n in zip(scales, channels, strict=True)]
        )

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """The bounds of all inputs together."""
        return [(min(low for low, _ in inputs), max(high for _, high in inputs))]


def _axis(shape: Shape, part: Shape) -> int:
    """The dimension in which a concatenation of this `shape` is larger than its first `part`."""
    return next(axis for axis, sizes in enumerate(zip(shape, part, strict=True)) if sizes[0] != sizes[1])
