"""The memory layout of a sequence: the order of its dimensions, and truth values as bits."""

import torch
from torch import Tensor

Order = tuple[int, ...]
"""A permutation of a sequence's dimensions, such as that in which they lie in memory."""


def steps_contiguous(tensor: Tensor) -> bool:
    """Whether each step of `tensor` is contiguous, whatever its stride over time."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def constant_step(sequence: Tensor) -> Tensor | None:
    """One step of a `sequence` whose steps are equal, as of the gradient of a mean over time; else None."""
    if sequence.ndim < 3 or sequence.shape[0] < 2:
        return None
    first = sequence[0]
    if sequence.stride(0) == 0:
        return first
    if not torch.equal(first, sequence[-1]):  # which mostly says it
        return None
    return first if torch.equal(sequence[1:-1], sequence[:-2]) else None


def inverse_order(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def step_to_order(order: Order | None, value: Tensor) -> Tensor:
    """One step's `value`, contiguous in the memory `order` of a sequence."""
    value = value.resolve_neg()
    return value.contiguous() if order is None else value.permute(step_order(order)).contiguous()


def permute_step(back: Order, value: Tensor) -> Tensor:
    """One step's `value`, permuted by the order `back` of a sequence's dimensions."""
    return value.permute(step_order(back))


def step_order(order: Order) -> Order:
    """The order of a step's dimensions, from that of a sequence's, whose first is time."""
    return tuple(dimension - 1 for dimension in order[1:])


def to_callers_order(order: Order, outputs: Tensor, last: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs and last states in memory `order`, permuted to the caller's."""
    back = inverse_order(order)
    return outputs.permute(back), [permute_step(back, value) for value in last]


def memory_order(inputs: Tensor) -> Order | None:
    """The order of dimensions in which steps of `inputs` are contiguous, if it is not the identity."""
    if steps_contiguous(inputs):
        return None
    strides = inputs.stride()
    rest = sorted(range(1, inputs.ndim), key=lambda dimension: -strides[dimension])
    order = (0, *rest)
    return order if inputs.permute(order)[0].is_contiguous() else None


def expand_over_time(once: Tensor, steps: int) -> Tensor:
    """`once` expanded over time, ``[T, ...]``, in memory order.

    Torch's sum of the gradient over time then goes through memory in order; in another order, as for
    channels-last, it takes ten times as long.
    """
    order = None if torch.compiler.is_compiling() else memory_order(once[None])
    if order is None:
        return once.expand(steps, *once.shape)
    lying = once.permute(step_order(order))
    return lying.expand(steps, *lying.shape).permute(inverse_order(order))


def row_bytes(count: int) -> int:
    """Bytes of a row of `count` bits."""
    return (count + 7) // 8


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """The first `count` of each row of bits as 0 and 1, eight to a byte, the lowest bit first."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).flatten(-2)[..., :count]
