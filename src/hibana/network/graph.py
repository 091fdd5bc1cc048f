"""A network as a graph of layers, one sample and one step at a time: what C and ONNX are written from.

What only moves numbers (flatten, dropout in evaluation) is no layer here: a value keeps the order in memory
that it was written in, and says which number of PyTorch's lies where.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from hibana.network.layers.base import LayerKind

__all__ = ["Network", "Node", "Shape"]

Shape = tuple[int, ...]
_HEAD = ("layer", "kind", "gives", "parameters", "not zero", "operations", "at these rates")


@dataclass(eq=False)
class Node:
    """One layer of a network, for one sample and step."""

    name: str
    """The layer's path in the network; ``"input"`` for the network's input."""
    layer: "LayerKind"
    module: Any
    """An ``nn.Module``; None for arithmetic in a ``forward``."""
    inputs: tuple["Node", ...]
    input_shapes: tuple[Shape, ...]
    """The shape in which the layer takes one sample of each input."""
    shape: Shape
    factor: float = 1.0
    """The number that a product multiplies by."""
    density: float = 1.0
    """Fraction of the outputs on the example that are not zero."""
    value_range: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest output on the example."""
    binary: bool = False
    """Whether all outputs on the example are 0 or 1."""
    users: list["Node"] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The name of the kind of layer."""
        return self.layer.name

    @property
    def size(self) -> int:
        """Number of outputs of one sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """A network over time as a graph of layers."""

    nodes: tuple[Node, ...]
    """In the order of execution; the first is the input."""
    output: Node
    output_shape: Shape
    """Shape of one sample of the network's output."""
    dtype: torch.dtype
    net: nn.Module
    """The copy of the network, with batch normalisation folded, that holds the nodes' modules."""

    def __str__(self) -> str:
        """A table of the layers: the shape of an output, and operations for one sample and step.

        Operations are additions of weights, and arithmetic of neurons; in the last column those for inputs
        that were not zero on the example.
        """
        rows, at_most, seen = [_HEAD], 0, 0
        for node in self.nodes:
            most, active, _ = node.layer.operations(node, self.dtype)
            at_most, seen = at_most + most, seen + round(active)
            count = sum(p.numel() for p in node.module.parameters()) if node.module is not None else 0
            sides = "x".join(map(str, node.shape))
            numbers = f"{count:,}", f"{node.density:.1%}", f"{most:,}", f"{round(active):,}"
            rows.append((node.name, node.layer.title(node), sides, *numbers))
        count = sum(p.numel() for p in self.net.parameters())
        sides = "x".join(map(str, self.output_shape))
        rows.append(("in all", "", sides, f"{count:,}", "", f"{at_most:,}", f"{seen:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: tuple[str, ...]) -> str:
            cells = [
                c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        return "\n".join(map(line, rows))

    @property
    def input(self) -> Node:
        """The node of the network's input."""
        return self.nodes[0]

    @property
    def static_nodes(self) -> tuple[Node, ...]:
        """The nodes before the first layer over time: a constant input needs them computed only once."""
        moving: set[Node] = set()
        for node in self.nodes:
            if node.layer.over_time or any(source in moving for source in node.inputs):
                moving.add(node)
        return tuple(node for node in self.nodes if node not in moving)
