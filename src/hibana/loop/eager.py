"""A step's values computed by PyTorch, one operation at a time: for what is too little to be compiled."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hibana.loop.graph.plan import evaluated
from hibana.loop.graph.step import Value

__all__ = ["in_torch", "unpacked"]


def unpacked(bits: Tensor, one: torch.Size) -> Tensor:
    """Truth values of a step, eight to a byte, the lowest bit first."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> places & 1).flatten()[: one.numel()].reshape(one).bool()


def in_torch(
    roots: Sequence[Value], known: Mapping[Value, Tensor], leaf: Callable[[Value], Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """`roots` in PyTorch, where `known` are at hand."""
    made = dict(known)
    for value in evaluated(roots, known):
        args = [made[argument] for argument in value.args]
        if not args:
            made[value] = leaf(value)
        elif value.op == "to_float":
            made[value] = args[0].to(dtype)
        elif value.op == "to_bool":
            made[value] = args[0] != 0
        elif value.op in ("maximum", "minimum"):
            made[value] = _extreme(value.op, *args)
        else:
            made[value] = getattr(torch, _CALLED.get(value.op, value.op))(*args)
    return [made[root] for root in roots]


def _extreme(op: str, one: Tensor, other: Tensor) -> Tensor:
    """As kernels have it: of zeros of two signs the other. PyTorch's choice depends on where they lie."""
    first = one > other if op == "maximum" else one < other
    return torch.where(first | one.isnan(), one, other)


_CALLED = {op: f"logical_{op}" for op in ("and", "or", "xor", "not")} | {"root": "sqrt"}
"""Operations that PyTorch calls otherwise."""
