"""Makes the values of a step: equal ones once, with constants held apart from the structure."""

import math
from typing import Any

import torch

from hibana.compiler.graph.ops import BOOLEAN, COMPARISONS, OPERATIONS, Unsupported
from hibana.compiler.graph.step import Value

__all__ = ["Values", "rounded"]

LARGE = 1 << 24
"""Whole numbers below it are held by every dtype that a kernel computes in."""


class Values:
    """Makes the values of one step, computed in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.known: dict[Any, Value] = {}
        self.constants: list[float] = []

    def number(self, number: Any) -> Value:
        """A small int or a zero is part of the structure; any other number is a constant of the kernel."""
        if not isinstance(number, bool | int | float):
            raise Unsupported(f"an argument of type {type(number).__name__}")
        minus_zero = isinstance(number, float) and math.copysign(1, number) < 0
        if (isinstance(number, bool | int) and abs(number) < LARGE) or (number == 0 and not minus_zero):
            return self.make("number", data=int(number))
        self.constants.append(rounded(number, self.dtype) if isinstance(number, int) else number)
        return Value("constant", data=len(self.constants) - 1)

    def make(self, op: str, *args: Value, data: int = 0) -> Value:
        """The value ``op(*args)``, the same object whenever it is the same value."""
        if op == "to_float" and not args[0].boolean:
            return args[0]
        if op == "to_bool" and args[0].boolean:
            return args[0]
        if op == "to_bool" and args[0].op == "to_float":
            return args[0].args[0]
        if op in COMPARISONS or (op not in BOOLEAN and op not in ("to_float", "number", "where")):
            args = tuple(self.make("to_float", a) for a in args)
        key = (op, args, data)
        if key not in self.known:
            assert op in ("number", "product") or op in OPERATIONS, op
            self.known[key] = Value(op, args, data)
        return self.known[key]


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """`number`, if it is one, as PyTorch has it beside a tensor of `dtype`."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    kind = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind, device="cpu").to(dtype).item()
