"""Products with a tensor, element by element."""

from torch import Tensor, nn

from hibana.network.graph import Node, Shape
from hibana.network.layers.base import LayerKind
from hibana.network.nir_node import NirNode, check_broadcasts, full_array, tensor
from hibana.network.onnx_export import OnnxStep

__all__ = ["Gain", "Scale"]


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


class Gain(LayerKind):
    """:class:`hibana.nir.Scale`."""

    name = "gain"
    types = (Scale,)
    nir_types = ("Scale",)
    elementwise = True

    def check(self, node: Node) -> None:
        self.require(node, node.input_shapes[0], {})

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        return step.op("Mul", [*inputs, step.constant(node.module.scale)])

    def to_nir(self, node: Node, dt: float) -> NirNode:
        return NirNode("Scale", {"scale": full_array(node.module.scale, node.shape, "scale")})

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        check_broadcasts(node.fields["scale"], shape)
        return Scale(tensor(node.fields["scale"]))
