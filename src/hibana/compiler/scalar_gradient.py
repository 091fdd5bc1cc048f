"""Gradients that are one number for all elements of a tensor, passed to the node that made it as a scalar.

Expanded, such a gradient, as of a sum, would be added to the others in a pass over memory; the node's kernel
adds it to what it reads anyway. It is valid only in the backward that passed it.
"""

from typing import Any

import torch
from torch import Tensor


def takes(node: Any) -> bool:
    """Whether `node` takes a scalar gradient."""
    return hasattr(node, "uniform")


def hand(node: Any, grad: Tensor) -> None:
    """Adds the 0-dimensional `grad` to the scalar gradient of `node`, which the running backward reaches."""
    before = handed(node)
    node.uniform = _running(), grad if before is None else before + grad


def handed(node: Any) -> Tensor | None:
    """The scalar gradient of `node` in the running backward."""
    found: tuple[int, Tensor] | None = node.uniform
    return found[1] if found is not None and found[0] == _running() else None


def _running() -> int:
    task: int = torch._C._current_graph_task_id()
    return task
