"""Linear layers: ``W x + b`` of one-dimensional samples."""

import numpy as np
import torch
from torch import Tensor, nn

from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.lowering import Activations, Lowering
from hibana.network.nir_node import NirNode, array, load_weights
from hibana.network.node import Node, Shape, in_order
from hibana.network.onnx_step import OnnxStep

__all__ = ["Linear", "dense_operations", "linear_node"]


class Linear(LayerKind):
    """``nn.Linear`` and :class:`hibana.Linear`."""

    name = "linear"
    types = TORCH_LAYERS["linear"]
    nir_types = ("Linear", "Affine")
    weighted = has_integers = True

    def check(self, node: Node) -> None:
        """Raises Unsupported unless samples have one dimension, and the weight the size of the settings."""
        (shape,), module = node.input_shapes, node.module
        if len(shape) != 1:
            self.refuse_setting(node, f"a linear layer on the last dimension of {shape} (flatten first)")
        self.require(node, (module.out_features,), {"weight": (module.out_features, shape[0])})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One product for each weight."""
        return dense_operations(node, node.inputs[0].size * node.size)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights ``[inputs, outputs]``, inputs in the `order` of memory, and the bias."""
        return node.module.weight.detach().T[order].contiguous(), node.module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Gemm`` of the input with the weight, plus the bias."""
        module = node.module
        bias = [] if module.bias is None else [step.constant(module.bias)]
        return step.op("Gemm", [*inputs, step.constant(module.weight), *bias], transB=1)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops of the product with the weight, plus the bias."""
        inputs, out = to.activations[node.inputs[0]], to.temporary(node.size)
        to.product(node, inputs, *self.weights(node, inputs.order), out)
        return Activations(node, in_order(node.size), out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A ``Linear`` node, or an ``Affine`` node with a bias."""
        return linear_node(node.module.weight, node.module.bias)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The linear layer with the weights of the node."""
        outputs, inputs = np.shape(node.fields["weight"])
        if shape != (inputs,):
            raise ValueError(f"takes {inputs} inputs in one dimension, but gets the shape {shape}")
        layer = nn.Linear(inputs, outputs, bias="bias" in node.fields, device="meta")
        return load_weights(layer, node.fields)


def linear_node(weight: Tensor, bias: Tensor | None) -> NirNode:
    """The NIR node of ``weight x + bias``."""
    if bias is None:
        return NirNode("Linear", {"weight": array(weight)})
    return NirNode("Affine", {"weight": array(weight), "bias": array(bias)})


def dense_operations(node: Node, products: int) -> Operations:
    """Operations of a layer that adds weights: `products` if no input is zero."""
    return Operations(products, products * node.inputs[0].density, products)
