"""Binary values of a step, which are always 0 or 1, and whether a cell emits spikes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.dependencies import remembered
from hibana.compiler.graph.ops import Interval, Operation, Unsupported
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import fitting_shape, tensors_of

States = frozenset[int]
"""Indices of states."""


def emits_spikes(cell: Cell) -> bool:
    """Whether `cell` emits only zeros and ones, by :attr:`Cell.emits_spikes` or else by its step.

    Raises:
        Unsupported: if the step can't be traced.

    >>> import hibana as hb
    >>> emits_spikes(hb.IFCell()), emits_spikes(hb.LICell())
    (True, False)
    """
    if cell.emits_spikes is not None:
        return cell.emits_spikes
    return remembered(cell, emits_spikes, lambda: _is_last_state_binary(cell))


def _is_last_state_binary(cell: Cell) -> bool:
    """Whether the last state of `cell` is 0 or 1 at every step."""
    shape = torch.Size(fitting_shape(cell))
    dtypes = [tensor.dtype for tensor in tensors_of(cell).values() if tensor.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    try:
        step = trace(cell, shape, dtype, draws=True, sparse=True)
    except Unsupported as error:
        raise Unsupported(
            f"whether {type(cell).__name__} emits spikes can't be read from its step ({error}); "
            f"set emits_spikes = True, or False, in the class"
        ) from error
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        states = cell.initial_state(torch.zeros(shape, dtype=dtype, device="cpu"))
    return len(states) - 1 in binary_states(step, states)


def is_binary(values: Tensor) -> bool:
    """Whether all `values` are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def binary_states(step: Step, initial: Sequence[Tensor]) -> States:
    """The states that are 0 or 1 at every step from the `initial` states on; a meta tensor is not binary."""
    binary = frozenset(i for i, state in enumerate(initial) if not state.is_meta and is_binary(state))
    while True:
        integers = Integers(step, binary)
        still = frozenset(i for i in binary if integers.is_binary(step.nexts[i]))
        if still == binary:
            return binary
        binary = still


def check_spikes(step: Step, initial: Sequence[Tensor]) -> None:
    """Raises Unsupported unless the last state of `step` is always 0 or 1 from the `initial` states on."""
    if len(initial) - 1 not in binary_states(step, initial):
        raise Unsupported("the step does not emit spikes that are 0 or 1, as hb.spike returns them")


class Integers(Analysis[Interval | None]):
    """Bounds of values that are always integers; None for other values."""

    def __init__(self, step: Step, binary: States) -> None:
        """States in `binary` are 0 or 1."""
        super().__init__()
        self.step, self.binary = step, binary

    def is_binary(self, value: Value) -> bool:
        """Whether `value` is always 0 or 1."""
        bounds = self.of(value)
        return bounds is not None and bounds[0] >= 0 and bounds[1] <= 1

    def leaf(self, value: Value) -> Interval | None:
        """Bounds 0 and 1 of a boolean; None for numbers, which may be no integers."""
        return (0.0, 1.0) if value.boolean else None

    def on_previous(self, value: Value) -> Interval | None:
        """Bounds 0 and 1 of a state that is always 0 or 1; None for other states."""
        return (0.0, 1.0) if value.data in self.binary else None

    def on_row(self, value: Value) -> Interval | None:
        """As :meth:`on_previous`, for the leaf of a state in a pass."""
        return (0.0, 1.0) if value.leaf.kind == "state" and value.leaf.index in self.binary else None

    def on_number(self, value: Value) -> Interval | None:
        """A number is its own lower and upper bound."""
        return float(value.data), float(value.data)

    def on_constant(self, value: Value) -> Interval | None:
        """The bounds of a constant of the step; None if it is no integer."""
        number = self.step.constants[value.data]
        return (number, number) if number.is_integer() else None

    def product(self, value: Value, args: list[Interval | None]) -> Interval | None:
        """None: a product with a matrix may be no integer."""
        return None

    def operation(self, value: Value, row: Operation, args: list[Interval | None]) -> Interval | None:
        """Bounds of an operation that keeps integers, from those of its arguments; None for others."""
        if row.boolean:
            return 0.0, 1.0
        integers = [bounds for bounds in args if bounds is not None]
        if len(integers) < len(args) or not row.integer or row.bounds is None:
            return None
        return row.bounds(*integers)
