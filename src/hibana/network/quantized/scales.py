"""What a whole number of a layer's weights stands for, and which layers need the same."""

import math

import torch
from torch import Tensor

from hibana.compiler import emits_spikes
from hibana.network.graph import Node

__all__ = ["added", "unit"]


def added(nodes: tuple[Node, ...]) -> dict[str, tuple[str, ...]]:
    """Of layers that read spikes and whose outputs are added: by name, all that one scale must do for."""
    groups = {}
    for node in nodes:
        if node.kind == "sum" and not any(user.kind == "sum" for user in node.users):
            terms = _terms(node)
            if all(term.layer.weighted and _are_spikes(term.inputs[0]) for term in terms):
                names = tuple(term.name for term in terms)
                groups.update(dict.fromkeys(names, names))
    return groups


def _terms(node: Node) -> list[Node]:
    """What a sum of sums adds up."""
    if node.kind != "sum":
        return [node]
    return [term for source in node.inputs for term in _terms(source)]


def _are_spikes(node: Node) -> bool:
    cell = getattr(node.module, "cell", None)
    return node.kind == "neurons" and cell is not None and emits_spikes(cell)


def unit(weights: Tensor, limit: int) -> Tensor:
    """What a whole number stands for in each row of `weights`, ``[rows, ...]``, none being above `limit`.

    Rows whose weights are multiples of their smallest, such as -1 and 2, are represented exactly.
    """
    sizes = weights.abs()
    largest = sizes.amax(1)
    smallest = torch.where(sizes > 0, sizes, math.inf).amin(1)
    multiples = sizes / smallest[:, None]
    most = multiples.amax(1)
    exact = (multiples == multiples.round()).all(1) & (most <= limit) & (most > 0)
    found = torch.where(exact, smallest / (limit / most.clamp(min=1)).floor(), largest / limit)
    return torch.where(largest > 0, found, 1.0)
