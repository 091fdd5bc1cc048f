"""The input of a network, sums of two values, and products with a number."""

import operator

import torch

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node
from hibana.network.layers.base import Call, LayerKind, Operations
from hibana.network.lowering import Activations, Lowering, spread
from hibana.network.nir_node import NirNode, full_array
from hibana.network.onnx_export import OnnxStep

__all__ = ["Input", "Scale", "Sum"]


class Input(LayerKind):
    """The input of the network."""

    name = "input"

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        return Operations(0, 0, 0)


class Sum(LayerKind):
    """The sum of two values of the network."""

    name = "sum"
    functions = (operator.add, operator.iadd, torch.add, "add", "add_")

    def read(self, call: Call) -> Node:
        if (
            len(call.inputs) != 2
            or call.arguments
            or call.named
            or call.input_shapes[0] != call.input_shapes[1]
        ):
            terms = " and ".join(map(str, (*call.input_shapes, *call.arguments)))
            raise Unsupported(f"{call.where} must add two values of one shape, got {terms}")
        return super().read(call)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        return step.op("Add", inputs)

    def lower(self, node: Node, to: Lowering) -> Activations:
        one, two = (to.activations[source] for source in node.inputs)
        two = to.ordered(two, one.order)
        left, right, out = to.numbers(one), to.numbers(two), to.temporary(node.size)
        for at, width in to.vectors(node.size):
            (out + at).store((left + at).load(width) + (right + at).load(width))
        return Activations(node, one.order, out)


class Scale(LayerKind):
    """A value times a number."""

    name = "scale"
    functions = (operator.mul, torch.mul, "mul")

    def read(self, call: Call) -> Node:
        node = super().read(call)
        number = call.arguments[0] if len(call.inputs) == len(call.arguments) == 1 else None
        if not isinstance(number, int | float):
            raise Unsupported(f"{call.where} must multiply one value of the network by a number")
        node.factor = number
        return node

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        return step.op("Mul", [*inputs, step.number(node.factor)])

    def lower(self, node: Node, to: Lowering) -> Activations:
        read = to.activations[node.inputs[0]]
        numbers, out = to.numbers(read), to.temporary(node.size)
        factor = to.factor(node.factor)
        for at, width in to.vectors(node.size):
            (out + at).store((numbers + at).load(width) * spread(factor, width))
        return Activations(node, read.order, out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        return NirNode("Scale", {"scale": full_array(node.factor, node.shape, "scale")})
