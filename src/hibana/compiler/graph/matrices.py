"""The matrices that a step multiplies by, among the nodes of its graph."""

from typing import Any

import torch
from torch import fx

from hibana.compiler.graph.nodes import name_of

__all__ = ["Matrices"]


class Matrices:
    """Square matrices of as many neurons as a step of `shape` has, made of the cell's tensors alone."""

    def __init__(self, shape: torch.Size, once: set[fx.Node]) -> None:
        self.shape = shape
        self.once = once
        """Nodes that depend on the cell's tensors alone."""
        self.nodes: list[fx.Node] = []

    def place(self, node: fx.Node) -> tuple[int, bool]:
        """Which of the matrices `node` is, and whether transposed."""
        turned = False
        while name_of(node.target) in ("t", "transpose", "mT", "view", "_unsafe_view") and self._is_matrix(
            node.args[0]
        ):
            turned ^= name_of(node.target) in ("t", "transpose", "mT")
            (node,) = node.all_input_nodes
        if node not in self.nodes:
            self.nodes.append(node)
        return self.nodes.index(node), turned

    def _is_matrix(self, node: Any) -> bool:
        """Whether `node` is a square matrix that depends on the cell's tensors alone."""
        neurons = self.shape[-1]
        return node in self.once and node.meta["val"].squeeze(0).shape == (neurons, neurons)
