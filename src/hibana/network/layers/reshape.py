"""Calls that return the same numbers in another shape, or the input itself in evaluation: no node."""

import torch
from torch import nn
from torch.nn import functional

from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.layers.base import Call, LayerKind
from hibana.network.nir_node import NirNode
from hibana.network.node import Node, Shape
from hibana.nn.blocks import StepsDropout
from hibana.nn.each_step import EachStep

__all__ = ["Reshape"]


class Reshape(LayerKind):
    """Flatten and its inverse, identities, dropout."""

    name = "reshape"
    types = (*TORCH_LAYERS["reshape"], *TORCH_LAYERS["dropout"], StepsDropout)
    functions = (
        *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten, functional.dropout),
        *("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "contiguous", "detach", "clone"),
    )
    nir_types = ("Flatten",)

    def read(self, call: Call) -> Node:
        """The input node: memory holds the same numbers."""
        return call.node.inputs[0]

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The ``nn.Flatten`` of the node, called at each step."""
        start, end = (range(len(shape))[int(node.fields[key])] for key in ("start_dim", "end_dim"))
        return EachStep(nn.Flatten(start + 1, end + 1))

    def lost_in_nir(self, module: nn.Module) -> str:
        """The dropout, which only training needs; empty for other modules."""
        return repr(module) if hasattr(module, "p") else ""  # a dropout
