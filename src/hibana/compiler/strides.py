"""The memory layout of a sequence, whatever the order of its dimensions."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "expansion",
    "in_callers_order",
    "inverse",
    "memory_order",
    "order_of_step",
    "repeated",
    "same_each_step",
    "step_back",
    "step_in",
    "steps_contiguous",
]


def steps_contiguous(tensor: Tensor) -> bool:
    """Whether each step of `tensor` is contiguous, whatever its stride over time."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def same_each_step(sequence: Tensor) -> Tensor | None:
    """One step of a `sequence` that has the same numbers at each, as the gradient of a mean over time has."""
    if sequence.ndim < 3 or sequence.shape[0] < 2:
        return None
    first = sequence[0]
    if sequence.stride(0) == 0:
        return first
    if not torch.equal(first, sequence[-1]):  # which mostly says it
        return None
    return first if torch.equal(sequence[1:-1], sequence[:-2]) else None


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return _inverse(tuple(order))


@lru_cache
def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def step_in(order: Sequence[int] | None, value: Tensor) -> Tensor:
    """One step's `value`, contiguous in the `order` of the sequence's dimensions."""
    value = value.resolve_neg()
    return value.contiguous() if order is None else value.permute(order_of_step(order)).contiguous()


def step_back(back: Sequence[int], value: Tensor) -> Tensor:
    """One step's `value` in the order `back` of the sequence's dimensions."""
    return value.permute(order_of_step(back))


def order_of_step(order: Sequence[int]) -> list[int]:
    """The order of a step's dimensions, of the `order` of a sequence's, whose first is time."""
    return _order_of_step(tuple(order))


@lru_cache
def _order_of_step(order: tuple[int, ...]) -> list[int]:
    return [dimension - 1 for dimension in order[1:]]


def in_callers_order(
    order: Sequence[int] | None, outputs: Tensor, last: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """What lies in `order` as the caller has its dimensions."""
    if order is None:
        return outputs, last
    back = inverse(order)
    return outputs.permute(back), [step_back(back, value) for value in last]


def memory_order(inputs: Tensor) -> list[int] | None:
    """The order of dimensions in which steps of `inputs` are contiguous, if it is another than theirs."""
    if steps_contiguous(inputs):
        return None
    strides = inputs.stride()
    rest = sorted(range(1, inputs.ndim), key=lambda dimension: -strides[dimension])
    order = [0, *rest]
    return order if inputs.permute(order)[0].is_contiguous() else None


def repeated(once: Tensor, steps: int) -> Tensor:
    """`once` at each of so many steps, ``[T, ...]``, expanded in the order in which it lies in memory.

    The sum of its gradient over time, which is torch's, goes through memory in order and lies as `once` does;
    of channels last torch makes another order, and takes ten times as long.
    """
    order = None if torch.compiler.is_compiling() else memory_order(once[None])
    if order is None:
        return once.expand(steps, *once.shape)
    lying = once.permute(order_of_step(order))
    out = lying.expand(steps, *lying.shape).permute(inverse(order))
    node: Any = out.grad_fn
    if node is not None:
        node.metadata[_REPEATED] = True
    return out


def expansion(inputs: Tensor) -> Any:
    """The node that expanded to `inputs` what is the same at each step, nothing between seen; or None."""
    node: Any = inputs.grad_fn
    if node is not None and node.name() == "PermuteBackward0" and _REPEATED in node.metadata:
        node = node.next_functions[0][0]
    return node if node is not None and node.name() == "ExpandBackward0" else None


_REPEATED = "hibana: of an expansion over time, in order"
