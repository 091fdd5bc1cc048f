"""The layout of a traced tensor: for each of its elements, the number of its neuron in the step.

A step's matrix products come among views and transpositions. An operation that only moves elements is applied
to the layout too, so that it is known which dimension of an operand holds the neurons.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOVES", "PRODUCTS", "columns", "is_step", "moved", "rows", "same", "step_layout"]

MOVES = frozenset(
    {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"}
    | {"alias", "detach", "clone", "contiguous", "expand", "lift_fresh", "numpy_T", "mT", "squeeze_"}
)
"""Operations whose result holds the elements of their first argument, each once."""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "mv", "addmv"})


def step_layout(shape: torch.Size) -> Tensor:
    """The layout of a step of `shape`."""
    return torch.arange(shape.numel(), dtype=torch.int64, device="cpu").view(shape)


def moved(layout: Tensor, operation: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """`layout` after `operation`, with its `args` after the tensor."""
    result = operation(layout.clone(), *args, **{k: v for k, v in kwargs.items() if k == "implicit"})
    assert isinstance(result, Tensor)
    return result.clone()


def same(layout: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Whether both are one layout, of `shape`."""
    return layout.shape == shape and (layout is other or torch.equal(layout, other))


def is_step(layout: Tensor, shape: torch.Size) -> bool:
    """Whether `layout` is that of a step of `shape`, its dimensions before the last perhaps joined."""
    return layout.numel() == shape.numel() and _in_order(layout)


def rows(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` is ``[samples, neurons]``, or that after a dimension of one."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and plain.shape[1] == neurons and _in_order(plain)


def columns(layout: Tensor, neurons: int) -> bool:
    """Whether `layout` is ``[neurons, samples]``, or that after a dimension of one."""
    plain = layout.squeeze(0) if layout.ndim == 3 else layout
    return plain.ndim == 2 and rows(plain.T, neurons)


def _in_order(layout: Tensor) -> bool:
    return torch.equal(layout.reshape(-1), step_layout(torch.Size([layout.numel()])))
