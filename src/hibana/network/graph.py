"""A network as a graph of layers for one sample and one step, from which all exports are generated.

Calls that only move numbers, such as flatten, are not nodes: ``Node.input_shapes`` says how a layer reshapes
its inputs.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hibana.network.layers import LAYERS
from hibana.network.node import Node, Shape

__all__ = ["Network", "Node", "Shape"]

_COLUMNS = ("layer", "kind", "gives", "parameters", "not zero", "operations", "at these rates")


@dataclass(frozen=True)
class Network:
    """A network over time as a graph of layers."""

    nodes: tuple[Node, ...]
    """All nodes in the order of execution; the first is the input."""
    output: Node
    output_shape: Shape
    """The shape of one sample of the output."""
    dtype: torch.dtype
    net: nn.Module
    """The copy of the network, with batch normalization folded, that holds the nodes' modules."""

    def __str__(self) -> str:
        """A table of the layers: output shapes, and operations for one sample and step.

        Operations are additions of weights and arithmetic of neurons. The last column counts only those for
        inputs that were not zero on the example.
        """
        rows: list[tuple[str, ...]] = [_COLUMNS]
        totals = [0, 0]
        for node in self.nodes:
            kind = LAYERS[node.kind]
            at_most, at_rates, _ = kind.operations(node, self.dtype)
            totals = [totals[0] + at_most, totals[1] + round(at_rates)]
            parameters = sum(p.numel() for p in node.module.parameters()) if node.module is not None else 0
            numbers = f"{parameters:,}", f"{node.density:.1%}", f"{at_most:,}", f"{round(at_rates):,}"
            rows.append((node.name, kind.title(node), "x".join(map(str, node.shape)), *numbers))
        parameters = sum(p.numel() for p in self.net.parameters())
        shape = "x".join(map(str, self.output_shape))
        rows.append(("in all", "", shape, f"{parameters:,}", "", *(f"{total:,}" for total in totals)))
        columns = list(zip(*rows, strict=True))
        for i, column in enumerate(columns):  # names to the left, numbers to the right
            width = max(map(len, column))
            columns[i] = tuple(cell.ljust(width) if i < 3 else cell.rjust(width) for cell in column)
        return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))

    @property
    def input(self) -> Node:
        """The node of the network's input."""
        return self.nodes[0]

    @property
    def static_nodes(self) -> tuple[Node, ...]:
        """The nodes before the first layer over time. If the input is constant, so are their outputs."""
        dynamic: set[Node] = set()
        for node in self.nodes:
            if LAYERS[node.kind].over_time or any(source in dynamic for source in node.inputs):
                dynamic.add(node)
        return tuple(node for node in self.nodes if node not in dynamic)
