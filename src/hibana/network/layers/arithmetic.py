"""The input of a network, sums of two values, and products with a number or a tensor."""

import operator
from dataclasses import replace

import torch
from torch import Tensor, nn

from hibana.compiler.c.integers import Bounds
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers.base import Call, IntegerLayer, LayerKind, Operations
from hibana.network.lowering import Activations, Lowering, spread
from hibana.network.nir_node import NirNode, check_broadcasts, full_array, tensor
from hibana.network.node import Node, Shape
from hibana.network.onnx_step import OnnxStep

__all__ = ["Input", "Scale", "Scaling", "Sum"]


class Input(LayerKind):
    """The input of the network."""

    name = "input"
    has_integers = True

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """No operations."""
        return Operations(0, 0, 0)


class Sum(LayerKind):
    """The sum of two values of the network."""

    name = "sum"
    functions = (operator.add, operator.iadd, torch.add, "add", "add_")
    has_integers = True

    def read(self, call: Call) -> Node:
        """The node of `call`; raises Unsupported unless it adds two values of one shape."""
        shapes = call.node.input_shapes
        two_values = len(shapes) == 2 and not call.arguments and not call.named
        if not two_values or shapes[0] != shapes[1]:
            terms = " and ".join(map(str, (*shapes, *call.arguments)))
            raise Unsupported(f"{call.where} must add two values of one shape, got {terms}")
        return super().read(call)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes an ``Add`` of the two inputs."""
        return step.op("Add", inputs)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add the second input, in the order of the first one, to the first."""
        first, second = (to.activations[source] for source in node.inputs)
        second = to.reordered(second, first.order)
        terms, out = (to.numbers(first), to.numbers(second)), to.temporary(node.size)
        for offset, width in to.vectors(node.size):
            values = [(term + offset).load(width) for term in terms]
            (out + offset).store(values[0] + values[1])
        return Activations(node, first.order, out)

    def integer_scale(self, layer: IntegerLayer, module: object, scales: list[Tensor]) -> Tensor:
        """The scale of both inputs; raises Unsupported if they differ."""
        first, second = map(layer.one_scale, scales)
        if first != second:
            raise Unsupported(
                f"layer {layer.name!r} adds integers of different scales; add spikes, or outputs of linear "
                "layers and convolutions that read the input or spikes, each in one sum alone"
            )
        return first

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """The sums of the bounds."""
        return [(sum(low for low, _ in inputs), sum(high for _, high in inputs))]


class Scale(nn.Module):
    """The input times `scale`, element by element: ``y = scale * x``. A NIR ``Scale`` node.

    Args:
        scale: a tensor that broadcasts against one step of input.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs`, ``[T, batch, ...]``, scaled."""
        return inputs * self.scale


class Scaling(LayerKind):
    """:class:`hibana.nir.Scale`, and the product with a number in a ``forward``."""

    name = "scale"
    types = (Scale,)
    functions = (operator.mul, torch.mul, "mul")
    nir_types = ("Scale",)
    elementwise = True

    def read(self, call: Call) -> Node:
        """The node of a :class:`Scale`, or of a product of one value with a Python number."""
        if call.node.module is not None:
            return super().read(call)
        number = call.arguments[0] if len(call.node.inputs) == len(call.arguments) == 1 else None
        if not isinstance(number, int | float):
            raise Unsupported(f"{call.where} must multiply one value of the network by a number")
        return replace(call.node, module=Scale(torch.tensor(number, dtype=torch.float64, device="cpu")))

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Mul`` of the input with the scale."""
        return step.op("Mul", [*inputs, step.constant(node.module.scale.to(step.dtype))])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that multiply the input with one number, or with one number per element."""
        inputs, scale = to.activations[node.inputs[0]], node.module.scale.detach()
        numbers, out = to.numbers(inputs), to.temporary(node.size)
        if scale.numel() == 1:
            number = to.constant(scale.flatten())[0].named("scale")
            for offset, width in to.vectors(node.size):
                (out + offset).store((numbers + offset).load(width) * spread(number, width))
        else:
            per_sample = scale.reshape(scale.shape[-len(node.shape) :]).expand(node.shape)
            scales = to.constant(per_sample.flatten()[inputs.order])
            for offset, width in to.vectors(node.size):
                (out + offset).store((numbers + offset).load(width) * (scales + offset).load(width))
        return Activations(node, inputs.order, out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A ``Scale`` node, with one number per element."""
        return NirNode("Scale", {"scale": full_array(node.module.scale, node.shape, "scale")})

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """A :class:`Scale` with the numbers of the node."""
        check_broadcasts(node.fields["scale"], shape)
        return Scale(tensor(node.fields["scale"]))
