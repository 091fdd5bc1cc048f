"""Calls that give the same numbers in another shape, or do nothing in evaluation: no layer of the graph."""

import torch
from torch import nn
from torch.nn import functional

from hibana.network.graph import Node
from hibana.network.layers.base import Call, LayerKind
from hibana.nn.blocks import StepsDropout

__all__ = ["Reshape"]


class Reshape(LayerKind):
    """Flatten and its inverse, identities, dropout."""

    name = "reshape"
    types = (
        *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        StepsDropout,
    )
    functions = (
        *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten, functional.dropout),
        *("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "contiguous", "detach", "clone"),
    )

    def read(self, call: Call) -> Node:
        return call.inputs[0]
