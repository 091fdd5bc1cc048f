"""Computes values of a step by PyTorch, one operation at a time, where compiling would not pay."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.graph.plan import evaluated
from hibana.compiler.graph.step import Value


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
            made[value] = function_of(value.op)(*args)
    return [made[root] for root in roots]


def _extreme(op: str, one: Tensor, other: Tensor) -> Tensor:
    """As kernels have it: of zeros of two signs the other. PyTorch's choice depends on where they lie."""
    first = one > other if op == "maximum" else one < other
    return torch.where(first | one.isnan(), one, other)


def function_of(op: str) -> Callable[..., Tensor]:
    """PyTorch's function for an operation of the table."""
    found = _FUNCTIONS.get(op) or getattr(torch, op, None) or getattr(functional, op)
    assert callable(found)
    return found


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{op: getattr(torch, f"logical_{op}") for op in ("and", "or", "xor", "not")},
    "root": torch.sqrt,
    "fma": lambda x, y, z: torch.addcmul(z, x, y),
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
"""Those that PyTorch calls otherwise."""
