"""Linear layers: ``W x + b`` of one-dimensional samples."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations

if TYPE_CHECKING:
    from hibana.network.scan import OnnxStep

__all__ = ["Linear", "dense_operations"]


class Linear(LayerKind):
    """``nn.Linear`` and :class:`hibana.Linear`."""

    name = "linear"
    types = (nn.Linear,)
    weighted = True

    def check(self, node: Node) -> None:
        (seen,), module = node.seen, node.module
        assert isinstance(module, nn.Linear)
        if len(seen) != 1:
            self.refuse_setting(node, f"a linear layer on the last dimension of {seen} (flatten first)")
        self.require(node, (module.out_features,), {"weight": (module.out_features, seen[0])})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        return dense_operations(node, node.inputs[0].size * node.size)

    def weights(self, node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
        module = node.module
        return module.weight.detach().T[places].contiguous(), module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        module = node.module
        bias = [] if module.bias is None else [step.constant(module.bias)]
        return step.op("Gemm", [*inputs, step.constant(module.weight), *bias], transB=1)


def dense_operations(node: Node, products: int) -> Operations:
    """Operations of a layer that adds weights: `products` if no input is zero."""
    return Operations(products, products * node.inputs[0].density, products)
