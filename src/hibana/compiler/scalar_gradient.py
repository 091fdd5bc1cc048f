"""Gradients that are one number for all elements of a tensor, passed to the node that made it as a scalar.

Such a gradient, of a sum of all values, would else be expanded and added to the others in a pass over memory.
The node's kernel adds it to what it reads anyway. It is worth nothing outside the backward that it was handed
over in: one that an exception ended leaves nothing to the next.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["hand", "handed", "takes"]


def takes(node: Any) -> bool:
    """Whether `node` asks what it was handed."""
    return hasattr(node, "uniform")


def hand(node: Any, grad: Tensor) -> None:
    """Hands `node`, which the backward that runs now comes to, a gradient, which has no dimensions."""
    before = handed(node)
    node.uniform = _running(), grad if before is None else before + grad


def handed(node: Any) -> Tensor | None:
    """What `node` was handed in the backward that runs now."""
    found: tuple[int, Tensor] | None = node.uniform
    return found[1] if found is not None and found[0] == _running() else None


def _running() -> int:
    task: int = torch._C._current_graph_task_id()
    return task
