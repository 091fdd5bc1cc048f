"""The weights and delays of a layer, in the order in which a program reads them: a row for each input."""

from typing import Any

from torch import Tensor

from hibana.network.graph import Node

__all__ = ["delays_of", "weights_of"]


def weights_of(node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weights of a layer as rows ``[inputs, ..., outputs]``, inputs in the order `places`; its bias."""
    module: Any = node.module
    weight = module.weight.detach()
    if node.kind in ("linear", "delayed"):
        return weight.T[places].contiguous(), module.bias
    if node.kind == "convolution" and weight.ndim == 3:
        weight = weight[:, :, None]
    outputs, inner, *kernel = weight.shape
    groups = module.groups
    grouped = weight.view(groups, outputs // groups, inner, *kernel)  # [G, O, C, ...]
    return grouped.movedim(1, -1).reshape(groups * inner, *kernel, outputs // groups), module.bias


def delays_of(node: Node, places: Tensor) -> Tensor:
    """The delay of each synapse ``[inputs, outputs]``, or of each number, in the order in which they lie."""
    module: Any = node.module
    steps: Tensor = module.steps
    if node.kind == "delayed":
        return steps.T[places].contiguous()
    return steps.expand(node.shape).flatten()[places]
