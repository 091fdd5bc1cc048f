"""A network as a graph of layers, one sample and one step at a time: what C and ONNX are written from.

What only moves numbers (flatten, dropout in evaluation) is no layer here: a value keeps the order in memory
that it was written in, and says which number of PyTorch's lies where.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from hibana.compiler.graph.ops import Unsupported

__all__ = ["OVER_TIME", "WEIGHTED", "Kind", "Network", "Node"]

Kind = Literal[
    "input", "linear", "convolution", "maximum", "average", "sum", "scale",
    "neurons", "window", "delay", "delayed", "delayed recurrent",
]  # fmt: skip
OVER_TIME = ("neurons", "window", "delay", "delayed", "delayed recurrent")
"""Layers whose output depends on the steps before, as well as on their input."""
WEIGHTED = ("linear", "convolution", "window", "delayed")
"""Layers that add rows of weights."""


@dataclass(eq=False)
class Node:
    """What one layer gives at each step, for one sample."""

    name: str
    """The layer's in the network; ``"input"`` of what goes in."""
    kind: Kind
    module: nn.Module | None
    inputs: tuple["Node", ...]
    seen: tuple[tuple[int, ...], ...]
    """The shapes that the layer sees its inputs in."""
    shape: tuple[int, ...]
    factor: float = 1.0
    """What a ``scale`` multiplies with."""
    density: float = 1.0
    """The part of its numbers that were not zero on the example."""
    extremes: tuple[float, float] = (0.0, 0.0)
    """The least and the largest of its numbers on the example."""
    binary: bool = False
    """Whether its numbers were all 0 or 1 on the example."""
    users: list["Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many numbers it is."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """A network over time, read."""

    nodes: tuple[Node, ...]
    """In the order they run in; the first is the input."""
    output: Node
    outputs: tuple[int, ...]
    """The shape that comes out."""
    dtype: torch.dtype
    net: nn.Module
    """The copy of the network, batch normalisation folded, that the layers are of."""

    def __str__(self) -> str:
        from hibana.network.table import table  # which reads neurons, and so this module

        return table(self)

    @property
    def input(self) -> Node:
        """What goes in."""
        return self.nodes[0]

    def check_kinds(self, *unknown: Kind) -> None:
        """Raises Unsupported, naming the first layer of a kind that is `unknown` to who reads the graph."""
        for node in self.nodes:
            if node.kind in unknown:
                raise Unsupported(
                    f"layer {node.name!r}: {type(node.module).__name__} is no layer that can be written"
                )

    @property
    def still(self) -> tuple[Node, ...]:
        """The nodes before the first that look back: what a constant input need not have computed twice."""
        moving: set[Node] = set()
        for node in self.nodes:
            if node.kind in OVER_TIME or any(other in moving for other in node.inputs):
                moving.add(node)
        return tuple(node for node in self.nodes if node not in moving)
