"""The memory layout of sequences: the strides of their steps, and truth values as bits."""

from collections.abc import Sequence

import torch
from torch import Tensor


def steps_contiguous(tensor: Tensor) -> bool:
    """Whether each step of `tensor`, ``[T, ...]``, is contiguous; its stride over time is arbitrary."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def fills_memory(tensor: Tensor) -> bool:
    """Whether `tensor` fills its memory without gaps, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    size = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent != 1:
            if stride != size:
                return False
            size *= extent
    return True


def in_layout(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """`tensor`, a step or a sequence ``[T, ...]``, copied unless its steps have these `strides`.

    A tensor of one number, which all neurons share, is never copied.
    """
    if tensor.numel() == 1:
        return tensor
    first = tensor.ndim - len(strides)  # 1 for a sequence, 0 for a step
    dimensions = zip(tensor.shape[first:], tensor.stride()[first:], strides, strict=True)
    if all(size == 1 or stride == target for size, stride, target in dimensions):
        return tensor
    over_time = (tensor.shape[first:].numel(),) * first
    copy = torch.empty_strided(tensor.shape, (*over_time, *strides), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


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


def expand_over_time(step: Tensor, steps: int) -> Tensor:
    """The tensor `step` expanded over time, ``[T, ...]``, by way of its memory order.

    Torch's sum of the gradient over time then reads memory in order. In another order, such as that of
    channels-last tensors, the sum takes ten times as long.
    """
    if torch.compiler.is_compiling() or step.is_contiguous() or not fills_memory(step):
        return step.expand(steps, *step.shape)
    order = sorted(range(step.ndim), key=step.stride, reverse=True)
    in_memory_order = step.permute(order)
    sequence = in_memory_order.expand(steps, *in_memory_order.shape)
    return sequence.permute(0, *(1 + order.index(dimension) for dimension in range(step.ndim)))


def first_step(sequence: Tensor) -> Tensor:
    """The step ``sequence[0]``, whose gradient is in the memory order of the step.

    Torch's gradient of ``sequence[0]`` is contiguous, and is copied and summed out of order.
    """
    order = sorted(range(1, sequence.ndim), key=sequence.stride, reverse=True)
    in_memory_order = sequence.permute(0, *order)[0]
    return in_memory_order.permute([order.index(dimension) for dimension in range(1, sequence.ndim)])


def row_bytes(count: int) -> int:
    """Bytes of a row of `count` bits."""
    return (count + 7) // 8


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """The first `count` bits of each row of bytes as 0 and 1; the lowest bit of a byte is the first."""
    positions = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> positions & 1).flatten(-2)[..., :count]
