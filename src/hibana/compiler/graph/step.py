"""The :class:`Step` and its values: the data structure that all passes work on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.ops import BOOLEAN, COMPARISONS, OPERATIONS, Unsupported


@dataclass(frozen=True, eq=False)
class Value:
    """One number (or truth value) per neuron and step.

    `op` is a leaf (``input``, ``previous``, ``gradient``, ``parameter``, ``constant``, ``number``, ``draw``),
    one of ``ops.OPERATIONS``, or ``product``; `data` is a leaf's index, a ``number`` itself, or what a
    ``draw`` is called (:func:`hibana.compiler.draws.numbers`). The product of a row of neurons with matrix j
    has `data` ``2 j``, with it transposed ``2 j + 1``. The passes (``graph.passes``) have leaves of their
    own: ``row``, ``bits`` and ``scalar``, by name.
    """

    op: str
    args: tuple["Value", ...] = ()
    data: int | str = 0
    scalar: bool = False
    """A parameter that is one number for all neurons."""

    @property
    def boolean(self) -> bool:
        """A truth value rather than a number."""
        return self.op in BOOLEAN

    def is_number(self, number: int) -> bool:
        """Whether it is this whole number, wherever it is read."""
        return self.op == "number" and self.data == number


@dataclass(frozen=True)
class Step:
    """One step of a cell: what it computes, and the gradients of its inputs.

    ``gradient`` leaf i is the gradient of the loss with respect to state i after the step.
    """

    states: tuple[str, ...]
    nexts: tuple[Value, ...]
    grad_input: Value | None
    grad_states: tuple[Value | None, ...]
    grad_sums: tuple[Value, ...]
    """Per neuron, to be summed over time for the :attr:`epilogue`."""
    constants: tuple[float, ...]
    prologue: Callable[..., tuple[Any, ...]]
    """From the cell's tensors to the ``parameter`` leaves, then the matrices."""
    epilogue: Callable[..., tuple[Tensor | None, ...]]
    """From the cell's tensors, the sums of :attr:`grad_sums` and those of :attr:`outer` to the gradients of
    the tensors."""
    parameters: int
    matrices: int = 0
    outer: tuple[tuple[Value, Value], ...] = ()
    """Pairs of rows whose outer products, summed over samples and time, are gradients of matrices."""
    draws: int = 0
    """How many random numbers a neuron draws."""
    any_size: bool = False
    """Whether the step is the same for every size of a dimension that no tensor of the cell has."""

    @property
    def sides(self) -> list[Value]:
        """Both of each pair of :attr:`outer`."""
        return [side for pair in self.outer for side in pair]


LARGE = 1 << 24
"""Whole numbers below it are held by every dtype that a kernel computes in."""


class Values:
    """Makes the values of one step, computed in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.known: dict[Any, Value] = {}
        self.constants: list[float] = []

    def number(self, number: Any) -> Value:
        """The value of a Python number.

        A small int or a zero is written into the kernel; any other number is an argument of it, so that
        cells that differ in it share the kernel.
        """
        if not isinstance(number, bool | int | float):
            raise Unsupported(f"an argument of type {type(number).__name__}")
        minus_zero = isinstance(number, float) and math.copysign(1, number) < 0
        if (isinstance(number, bool | int) and abs(number) < LARGE) or (number == 0 and not minus_zero):
            return self.make("number", data=int(number))
        self.constants.append(rounded(number, self.dtype) if isinstance(number, int) else number)
        return Value("constant", data=len(self.constants) - 1)

    def make(self, op: str, *args: Value, data: int | str = 0) -> Value:
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
            assert op in ("number", "product", "draw") or op in OPERATIONS, op
            self.known[key] = Value(op, args, data)
        return self.known[key]


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """`number`, if it is one, as PyTorch has it beside a tensor of `dtype`."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    kind = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind, device="cpu").to(dtype).item()
