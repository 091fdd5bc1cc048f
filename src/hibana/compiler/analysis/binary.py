"""Binary values of a step: those that are always 0 or 1."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.ops import Interval, Operation
from hibana.compiler.graph.step import Step, Value

States = frozenset[int]
"""Indices of states."""


def is_binary(values: Tensor) -> bool:
    """Whether all `values` are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def binary_states(step: Step, initial: Sequence[Tensor]) -> States:
    """The states that are 0 or 1 at every step from the `initial` states on; a meta tensor is not binary."""
    names = {str(i): i for i in range(len(step.states))}
    binary = frozenset(i for i, state in enumerate(initial) if not state.is_meta and is_binary(state))
    while True:
        integers = Integers(step, names, binary)
        still = frozenset(i for i in binary if integers.is_binary(step.nexts[i]))
        if still == binary:
            return binary
        binary = still


class Integers(Analysis[Interval | None]):
    """Bounds of values that are always integers; None for other values."""

    def __init__(self, step: Step, states: Mapping[str, int], binary: States) -> None:
        """`states` maps the names of state values in the step to indices; states in `binary` are 0 or 1."""
        super().__init__()
        self.step, self.states, self.binary = step, states, binary

    def is_binary(self, value: Value) -> bool:
        """Whether `value` is always 0 or 1."""
        bounds = self.of(value)
        return bounds is not None and bounds[0] >= 0 and bounds[1] <= 1

    def leaf(self, value: Value) -> Interval | None:
        """Bounds 0 and 1 of a boolean; None for numbers, which may be no integers."""
        return (0.0, 1.0) if value.boolean else None

    def on_previous(self, value: Value) -> Interval | None:
        """Bounds 0 and 1 of a state that is always 0 or 1; None for other states."""
        return (0.0, 1.0) if self.states.get(str(value.data)) in self.binary else None

    on_row = on_previous

    def on_number(self, value: Value) -> Interval | None:
        """A number is its own lower and upper bound."""
        return float(value.data), float(value.data)

    def on_constant(self, value: Value) -> Interval | None:
        """The bounds of a constant of the step; None if it is no integer."""
        number = self.step.constants[int(value.data)]
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
