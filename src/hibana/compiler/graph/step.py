"""The traced :class:`Step` of a cell, as a graph of values: the input of all analyses and code generators."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.leaf import NO_LEAF, Leaf
from hibana.compiler.graph.ops import OPERATIONS, Operation, Unsupported


def _has_op(description: str, *ops: str) -> property:
    """A property of a value: whether its `op` is one of `ops`."""
    return property(lambda value: value.op in ops, doc=f"Whether it is {description}.")


@dataclass(frozen=True, eq=False)
class Value:
    """A number or a boolean per neuron and step: a leaf, an operation of the table, or a matrix product."""

    op: str
    """A name in ``OPERATIONS``, ``product``, or the kind of a leaf: ``input``, ``previous``, ``gradient``,
    ``parameter``, ``constant``, ``number``, ``uniform`` or ``normal``; in a pass
    (:mod:`hibana.compiler.graph.passes`) ``row``, ``bits``, ``scalar`` or ``draw``, with a `leaf`."""
    args: tuple["Value", ...] = ()
    data: int = 0
    """The index of a leaf of the step, or the integer of a ``number``.
    ``2 j`` for the product with matrix j, ``2 j + 1`` for the product with its transpose."""
    scalar: bool = False
    """Whether a parameter is one number for all neurons."""
    leaf: Leaf = NO_LEAF
    """What a leaf of a pass stands for."""

    @cached_property
    def operation(self) -> Operation | None:
        """The row of `op` in the table of operations; None for leaves and products."""
        return OPERATIONS.get(self.op)

    @cached_property
    def boolean(self) -> bool:
        """Whether it is a boolean rather than a number."""
        return self.op == "bits" if self.operation is None else self.operation.boolean

    is_input = _has_op("the leaf of the step's input", "input")
    is_previous = _has_op("the leaf of a state before the step", "previous")
    is_gradient = _has_op("the gradient of a state after the step, an input of the backward", "gradient")
    is_draw = _has_op("the leaf of a random number", "uniform", "normal", "draw")
    is_row = _has_op("a leaf of a pass: one number per neuron", "row")
    is_scalar = _has_op("a leaf of a pass: one number for all neurons", "scalar")
    is_named = _has_op("a leaf of a pass", "row", "bits", "scalar", "draw")
    is_available = _has_op(
        "a leaf that the backward reads without storing it", "constant", "number", "parameter", "gradient"
    )
    is_product = _has_op("a product with a matrix of the cell", "product")

    @property
    def is_uniform(self) -> bool:
        """Whether it is a leaf that is one number for all neurons and steps."""
        return self.scalar or self.op in ("number", "constant")

    @property
    def matrix(self) -> tuple[int, bool]:
        """The index of the matrix of a product, and whether the matrix is transposed."""
        return self.data // 2, bool(self.data % 2)

    @property
    def is_call(self) -> bool:
        """Whether a library function computes this value, for a row of neurons at a time."""
        return self.operation is not None and self.operation.call

    @property
    def as_boolean(self) -> "Value | None":
        """If this value is a boolean converted to 1 or 0: the boolean; else None."""
        return self.args[0] if self.op == "to_float" else None

    @property
    def gate(self) -> "Value | None":
        """A boolean such that this value is 0 where it is false, or None.

        It is the condition of a value ``to_float(condition)`` or ``where(condition, x, 0)``.
        """
        if self.op == "where" and not self.args[2].is_number(0):
            return None
        return self.args[0] if self.op in ("to_float", "where") else None

    def is_number(self, number: int) -> bool:
        """Whether it is the integer `number`, written into the code of a kernel."""
        return self.op == "number" and self.data == number


@dataclass(frozen=True)
class Step:
    """One step of a cell: its next states, and the gradients of its inputs.

    The leaf ``gradient`` i is the gradient of the loss with respect to state i after the step.
    """

    states: tuple[str, ...]
    """The cell's names of its states, such as ``v``."""
    nexts: tuple[Value, ...]
    """The states after the step; the last is the output."""
    grad_input: Value | None
    """The gradient of the input."""
    grad_states: tuple[Value | None, ...]
    """The gradients of the states before the step."""
    grad_sums: tuple[Value, ...]
    """Gradients per neuron, whose sums over time :attr:`epilogue` takes."""
    constants: tuple[float, ...]
    """The numbers of the ``constant`` leaves."""
    prologue: Callable[..., tuple[Any, ...]]
    """A function from the cell's tensors to the ``parameter`` leaves, then the matrices."""
    epilogue: Callable[..., tuple[Tensor | None, ...]]
    """A function from the cell's tensors, the sums of :attr:`grad_sums` and those of :attr:`outer` to the
    gradients of the tensors."""
    parameters: int
    """The number of ``parameter`` leaves."""
    matrices: int = 0
    """The number of matrices."""
    outer: tuple[tuple[Value, Value], ...] = ()
    """Pairs of rows whose outer products, summed over samples and time, are gradients of matrices."""
    sparse: tuple[int, ...] = ()
    """The matrices that are sparse: `prologue` returns the weights of their synapses, and after all matrices
    the row starts and the targets of each (:mod:`hibana.compiler.graph.sparse`)."""
    summed_at: tuple[int | None, ...] = ()
    """For each pair in `outer`, the sparse matrix whose synapses alone need a sum; None for all sums."""
    draws: int = 0
    """The number of random numbers per neuron."""
    any_size: bool = False
    """Whether the step is the same for all sizes of the dimensions that no tensor of the cell has."""

    @property
    def sides(self) -> list[Value]:
        """The factors of all outer products, two for each pair in :attr:`outer`."""
        return [side for pair in self.outer for side in pair]

    def state(self, index: int, offset: int = 0, *, is_gradient: bool = False) -> Leaf:
        """The leaf of a state; a forward pass reads the last one, the output of the step before."""
        is_emitted = index == len(self.states) - 1 and not offset and not is_gradient
        name = "emitted_before" if is_emitted else f"{self.states[index]}_state"
        return Leaf("state", index, offset, is_gradient, name)

    @cached_property
    def carried(self) -> tuple[Leaf, ...]:
        """The leaves of all states in a forward pass."""
        return tuple(map(self.state, range(len(self.states))))

    @property
    def output(self) -> Leaf:
        """The leaf of the output, with the name of the last state."""
        return Leaf("output", name=f"{self.states[-1]}_state")

    @property
    def spikes(self) -> Value | None:
        """The boolean that the step emits as 1 or 0; None for an output that is no boolean."""
        return self.nexts[-1].as_boolean

    @property
    def arguments(self) -> int:
        """The number of tensors that :attr:`prologue` returns."""
        return self.parameters + self.matrices + 2 * len(self.sparse)

    def index_of(self, matrices: Sequence[Tensor], matrix: int) -> tuple[Tensor, Tensor]:
        """The row starts and targets of a sparse `matrix`; `matrices` is what `prologue` returns for them."""
        first = self.matrices + 2 * self.sparse.index(matrix)
        return matrices[first], matrices[first + 1]

    def with_gradients(
        self, rewrite: Callable[[Value], Value], outer: Iterable[tuple[Value, Value]]
    ) -> "Step":
        """A copy of the step with `rewrite` applied to each gradient, and with the outer products `outer`."""
        return replace(
            self,
            grad_input=None if self.grad_input is None else rewrite(self.grad_input),
            grad_states=tuple(None if grad is None else rewrite(grad) for grad in self.grad_states),
            grad_sums=tuple(map(rewrite, self.grad_sums)),
            outer=tuple(outer),
        )


LARGE = 1 << 24
"""Integers below it are exact in every dtype of kernels."""


class Values:
    """Makes the values of one step, computed in `dtype`; equal values are the same object."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._values: dict[Any, Value] = {}
        self.constants: list[float] = []

    def number(self, number: Any) -> Value:
        """The value of a Python number.

        Small integers and zero are written into the code of a kernel. Other numbers are arguments of the
        kernel, so cells that differ in them share it.
        """
        if not isinstance(number, bool | int | float):
            raise Unsupported(f"an operation of the step has an argument of type {type(number).__name__}")
        minus_zero = isinstance(number, float) and math.copysign(1, number) < 0
        if (isinstance(number, bool | int) and abs(number) < LARGE) or (number == 0 and not minus_zero):
            return self.make("number", data=int(number))
        self.constants.append(rounded(number, self.dtype) if isinstance(number, int) else number)
        return Value("constant", data=len(self.constants) - 1)

    def make(self, op: str, *args: Value, data: int = 0) -> Value:
        """The value of `op` applied to `args`, which are converted to booleans or numbers as it needs."""
        if op in ("to_float", "to_bool") and args[0].boolean == (op == "to_bool"):
            return args[0]
        if op == "to_bool" and args[0].as_boolean is not None:
            return args[0].as_boolean
        row = OPERATIONS.get(op)
        if row is None or not row.takes_booleans:
            args = tuple(self.make("to_float", a) for a in args)
        key = (op, args, data)
        if key not in self._values:
            assert op in ("number", "product", "uniform", "normal") or op in OPERATIONS, op
            self._values[key] = Value(op, args, data)
        return self._values[key]


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """`number` in the precision of `dtype`; other objects, and booleans, unchanged."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    kind = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind, device="cpu").to(dtype).item()
