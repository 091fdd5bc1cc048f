"""The memory layout of sequences: the order of their dimensions, and truth values as bits."""

import torch
from torch import Tensor

Order = tuple[int, ...]
"""A permutation of a sequence's dimensions; in memory order their strides decrease."""


def steps_contiguous(tensor: Tensor) -> bool:
    """Whether each step of `tensor`, ``[T, ...]``, is contiguous; its stride over time is arbitrary."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def constant_step(sequence: Tensor) -> Tensor | None:
    """One step of `sequence` if all its steps are equal, as in a mean's gradient over time; else None."""
    if sequence.ndim < 3 or sequence.shape[0] < 2:
        return None
    first = sequence[0]
    if sequence.stride(0) == 0:
        return first
    if not torch.equal(first, sequence[-1]):  # a cheap test, which most sequences with unequal steps fail
        return None
    return first if torch.equal(sequence[1:-1], sequence[:-2]) else None


def inverse_order(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def step_to_order(order: Order | None, value: Tensor) -> Tensor:
    """`value`, a tensor of one step, contiguous in the memory `order` of a sequence; None: its own order."""
    value = value.resolve_neg()
    return value.contiguous() if order is None else value.permute(step_order(order)).contiguous()


def permute_step(order: Order, value: Tensor) -> Tensor:
    """`value`, a tensor of one step, permuted by the `order` of a sequence's dimensions."""
    return value.permute(step_order(order))


def step_order(order: Order) -> Order:
    """The order of a step's dimensions in a sequence of this `order`, whose first dimension is time."""
    return tuple(dimension - 1 for dimension in order[1:])


def to_callers_order(order: Order, outputs: Tensor, last: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs and last states in memory `order`, permuted to the caller's order."""
    inverse = inverse_order(order)
    return outputs.permute(inverse), [permute_step(inverse, value) for value in last]


def memory_order(inputs: Tensor) -> Order | None:
    """The order of dimensions that makes the steps of `inputs` contiguous; None if they are, or can't be."""
    if steps_contiguous(inputs):
        return None
    strides = inputs.stride()
    order = (0, *sorted(range(1, inputs.ndim), key=lambda dimension: -strides[dimension]))
    return order if inputs.permute(order)[0].is_contiguous() else None


def expand_over_time(step: Tensor, steps: int) -> Tensor:
    """The tensor `step` expanded over time, ``[T, ...]``, by way of its memory order.

    Torch's sum of the gradient over time then reads memory in order. In another order, such as that of
    channels-last tensors, the sum takes ten times as long.
    """
    order = None if torch.compiler.is_compiling() else memory_order(step[None])
    if order is None:
        return step.expand(steps, *step.shape)
    in_memory_order = step.permute(step_order(order))
    return in_memory_order.expand(steps, *in_memory_order.shape).permute(inverse_order(order))


def row_bytes(count: int) -> int:
    """Bytes of a row of `count` bits."""
    return (count + 7) // 8


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """The first `count` bits of each row of bytes as 0 and 1; the lowest bit of a byte is the first."""
    positions = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> positions & 1).flatten(-2)[..., :count]
