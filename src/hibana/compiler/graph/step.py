"""The :class:`Step` and its values: the data structure that all passes work on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.ops import OPERATIONS, Operation, Unsupported


@dataclass(frozen=True, eq=False)
class Value:
    """One number (or truth value) per neuron and step.

    `op` is a leaf (``input``, ``previous``, ``gradient``, ``parameter``, ``constant``, ``number``, ``draw``),
    one of ``ops.OPERATIONS``, or ``product``; `data` is a leaf's index, a ``number`` itself, or the name of a
    ``draw`` (:func:`hibana.compiler.draws.numbers`). The product of a row of neurons with matrix j
    has `data` ``2 j``, with it transposed ``2 j + 1``. The passes (``graph.passes``) have leaves of their
    own: ``row``, ``bits`` and ``scalar``, by name.
    """

    op: str
    args: tuple["Value", ...] = ()
    data: int | str = 0
    scalar: bool = False
    """A parameter that is one number for all neurons."""

    @cached_property
    def operation(self) -> Operation | None:
        """The row of the table of operations; None for leaves and products."""
        return OPERATIONS.get(self.op)

    @cached_property
    def boolean(self) -> bool:
        """Whether it is a truth value rather than a number."""
        return self.op == "bits" if self.operation is None else self.operation.boolean

    @property
    def is_input(self) -> bool:
        return self.op == "input"

    @property
    def is_previous(self) -> bool:
        """Whether it is a state before the step."""
        return self.op == "previous"

    @property
    def is_gradient(self) -> bool:
        """Whether it is the gradient of a state after the step."""
        return self.op == "gradient"

    @property
    def is_draw(self) -> bool:
        return self.op == "draw"

    @property
    def is_row(self) -> bool:
        """Whether it is a number per neuron that a pass reads from memory."""
        return self.op == "row"

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number for all neurons that a pass reads from memory."""
        return self.op == "scalar"

    @property
    def is_named(self) -> bool:
        """Whether it is a leaf of a pass, which `data` names."""
        return self.op in ("row", "bits", "scalar", "draw")

    @property
    def is_available(self) -> bool:
        """Whether it is a leaf that costs nothing to read."""
        return self.op in ("constant", "number", "parameter", "gradient")

    @property
    def is_uniform(self) -> bool:
        """Whether it is a leaf that is one number for all neurons and steps."""
        return self.scalar or self.op in ("number", "constant")

    @property
    def is_product(self) -> bool:
        return self.op == "product"

    @property
    def matrix(self) -> tuple[int, bool]:
        """The matrix of a product, and whether it is transposed."""
        return int(self.data) // 2, bool(int(self.data) % 2)

    @property
    def is_call(self) -> bool:
        """Whether a function computes it, a row at a time."""
        return self.operation is not None and self.operation.call

    @property
    def as_boolean(self) -> "Value | None":
        """The truth value that this number is, as 1 or 0; None for other numbers."""
        return self.args[0] if self.op == "to_float" else None

    @property
    def gate(self) -> "Value | None":
        """The truth value outside which it is zero, for a conversion or a choice between a number and 0."""
        if self.op == "where" and not self.args[2].is_number(0):
            return None
        return self.args[0] if self.op in ("to_float", "where") else None

    def is_number(self, number: int) -> bool:
        """Whether it is this integer, written into the code."""
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

    @property
    def spikes(self) -> Value | None:
        """The truth value that the step emits as 1 or 0, if it emits one."""
        return self.nexts[-1].as_boolean

    def with_gradients(
        self, changed: Callable[[Value], Value], outer: Iterable[tuple[Value, Value]]
    ) -> "Step":
        """The step with each gradient `changed`, and with other pairs :attr:`outer`."""
        return replace(
            self,
            grad_input=None if self.grad_input is None else changed(self.grad_input),
            grad_states=tuple(None if grad is None else changed(grad) for grad in self.grad_states),
            grad_sums=tuple(map(changed, self.grad_sums)),
            outer=tuple(outer),
        )


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
        if op in ("to_float", "to_bool") and args[0].boolean == (op == "to_bool"):
            return args[0]
        if op == "to_bool" and args[0].as_boolean is not None:
            return args[0].as_boolean
        row = OPERATIONS.get(op)
        if row is None or not row.takes_booleans:
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
