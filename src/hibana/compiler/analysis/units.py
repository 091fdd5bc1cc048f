"""Units of fixed-point numbers: of the values of a step, and of quantized weights.

real number = integer * unit
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hibana.compiler.analysis.binary import Integers, binary_states
from hibana.compiler.analysis.real_values import Range, RealValues
from hibana.compiler.graph.analysis import Analysis, reachable
from hibana.compiler.graph.ops import Operation
from hibana.compiler.graph.step import Step, Value

__all__ = ["FLIPPED", "FRACTION", "ONE", "SHARING", "RangesNeeded", "StepUnits", "Units", "row_units"]

FRACTION = 15
"""Bits of a factor, and of the range of a number whose unit nothing else determines."""
STATE = 14
"""Bits of the measured range of a state that saturates."""
SHARING = ("add", "sub", "neg", "abs", "maximum", "minimum", "where")
"""Operations whose arguments and result share a unit."""
FLIPPED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge", "eq": "eq", "ne": "ne"}
"""By comparison: the comparison that holds with its operands swapped."""
ONE = torch.ones((), dtype=torch.float64, device="cpu")


class RangesNeeded(Exception):  # noqa: N818 # the caller measures the ranges and tries again
    """The fixed-point form of a step depends on ranges measured on data."""


class Units:
    """The units of values (real number = integer * unit), and known ratios between undetermined units.

    It is a union-find structure with a ratio on each edge.
    """

    def __init__(self) -> None:
        self.parents: dict[Value, tuple[Value, Tensor | float]] = {}
        self.units: dict[Value, Tensor] = {}

    def join(self, one: Value, other: Value, ratio: Tensor | float = 1.0) -> None:
        """Sets the unit of `one` to `ratio` times the unit of `other`, unless both are determined already."""
        (first, a), (second, b) = self._root(one), self._root(other)
        if first is second or (first in self.units and second in self.units):
            return
        if first in self.units:
            self.parents[second] = first, a / (b * ratio)
        else:
            self.parents[first] = second, b * ratio / a

    def of(self, value: Value) -> Tensor | None:
        """The unit of `value`, or None if it is not determined yet."""
        root, ratio = self._root(value)
        return self.units[root] * ratio if root in self.units else None

    def set(self, value: Value, unit: Tensor) -> None:
        """Determines the unit of `value`, unless it is determined already."""
        root, ratio = self._root(value)
        self.units.setdefault(root, unit / ratio)

    def related(self, value: Value, candidates: Iterable[Value]) -> list[Value]:
        """The `candidates` for which the ratio of their unit to that of `value` is known."""
        root = self._root(value)[0]
        return [other for other in candidates if self._root(other)[0] is root]

    def ratio(self, one: Value, other: Value) -> Tensor | float:
        """The unit of `one` divided by the unit of `other`, which must be related."""
        return self._root(one)[1] / self._root(other)[1]

    def _root(self, value: Value) -> tuple[Value, Tensor | float]:
        """The representative of `value`, and the unit of `value` divided by the representative's unit."""
        ratio: Tensor | float = 1.0
        while value in self.parents:
            value, factor = self.parents[value]
            ratio = ratio * factor
        return value, ratio


class StepUnits:
    """The units of the values of one step. Each value is a constant, binary, or a number with a unit."""

    def __init__(
        self,
        step: Step,
        nexts: Sequence[Value],
        tensors: Sequence[Tensor],
        initial: Sequence[Tensor],
        input_unit: Tensor,
        ranges: Sequence[Range] | None,
    ) -> None:
        self.nexts, self.initial, self.input_unit = nexts, initial, input_unit
        self.order = reachable(nexts)
        self.ranges = None if ranges is None else dict(zip(self.order, ranges, strict=True))
        self.real = RealValues(step, step.prologue(*tensors))
        self.spikes = binary_states(step, initial)
        """Indices of the binary states."""
        self.integers = Integers(step, self.spikes)
        self.constant: dict[Value, Tensor] = {}
        """The numbers of values that depend on no input, state or draw."""
        for value in self.order:
            varies = value.op in ("input", "previous") or value.is_draw or value.is_product
            if not varies and all(argument in self.constant for argument in value.args):
                self.constant[value] = self.real.of(value).double()
        self.units = Units()
        self.growing = self._growing()
        self._choose(fine=bool(self.growing))

    def is_binary(self, value: Value) -> bool:
        """Whether `value` is always 0 or 1, and no constant."""
        return value not in self.constant and self.integers.is_binary(value)

    def is_number(self, value: Value) -> bool:
        """Whether `value` is neither constant nor binary."""
        return value not in self.constant and not self.is_binary(value)

    def is_gated(self, value: Value) -> bool:
        """Whether `value` is the product of a number and a value that is always 0 or 1."""
        return value.op == "mul" and any(map(self.is_binary, value.args))

    def factor(self, value: Value) -> Tensor | None:
        """The factor c if `value` is ``x * c`` or ``x / (1 / c)`` with a constant c; else None."""
        if value.op == "div" and value.args[1] in self.constant:
            return 1 / self.constant[value.args[1]]
        return next((self.constant[a] for a in value.args if a in self.constant and value.op == "mul"), None)

    def range(self, value: Value) -> Range:
        """The measured range of `value`; raises RangesNeeded if no range was measured."""
        if self.ranges is None:
            raise RangesNeeded
        return self.ranges[value]

    def of(self, value: Value) -> Tensor:
        """The unit of `value` (real number = integer * unit); by default it follows from measured ranges."""
        if (unit := self.units.of(value)) is None:
            related = self.units.related(value, self.order)
            sizes = [max(map(abs, self.range(v))) / self.units.ratio(v, value) for v in related]
            largest = max(
                float(torch.as_tensor(size, dtype=torch.float64, device="cpu").max()) for size in sizes
            )
            unit = torch.tensor((largest or 1.0) / 2**FRACTION, dtype=torch.float64, device="cpu")
            self.units.set(value, unit)
        return unit

    def of_state(self, state: int) -> Tensor:
        """The unit of a state; 1 for a binary or constant state."""
        before = (value for value in self.order if value.is_previous and value.data == state)
        numbers = [value for value in (*before, self.nexts[state]) if self.is_number(value)]
        return self.of(numbers[0]) if numbers else ONE

    def _growing(self) -> frozenset[int]:
        """States that may grow without bound: they feed each other, or their own coefficient exceeds 1."""
        numbers = [i for i in range(len(self.nexts)) if i not in self.spikes]
        gains = {
            j: dict(zip(numbers, _Gain(self, j).run(self.nexts[i] for i in numbers), strict=True))
            for j in numbers
        }
        reach = {i: {j for j in numbers if gains[j][i] > 0} for i in numbers}
        for _ in numbers:
            reach = {i: reach[i].union(*(reach[j] for j in reach[i])) for i in numbers}
        mutual = {i for i in numbers for j in reach[i] if j != i and i in reach[j]}
        return frozenset(mutual | {i for i in numbers if gains[i][i] > 1 + 1e-9})

    def _choose(self, *, fine: bool) -> None:
        """Joins values that share a unit; `fine` divides the unit of the input by up to 2^8."""
        numbers = [value for value in self.order if self.is_number(value)]
        scaled, compared = self._join_exact(numbers)
        for entry in (value for value in numbers if value.is_input):
            shift = 0
            if fine:
                related = self.units.related(entry, numbers)
                largest = max(max(map(abs, self.range(value))) for value in related)
                bits = STATE - math.log2(max(largest, 1e-30) / float(self.input_unit.min()))
                shift = min(8, max(0, math.floor(bits)))
            self.units.set(entry, self.input_unit * 2.0**-shift)
        states = frozenset(i for i, v in enumerate(self.initial) if bool((v == v.round()).all()))
        while (integer := frozenset(i for i in states if self._is_integer(self.nexts[i], states))) != states:
            states = integer
        for value in numbers:
            if self._is_integer(value, states):
                self.units.set(value, ONE)
        for value, argument, ratio in scaled:
            if bool((ratio > 0).all()):
                self.units.join(value, argument, ratio)
        for one, other in compared:
            self.units.join(one, other)

    def _join_exact(
        self, numbers: list[Value]
    ) -> tuple[list[tuple[Value, Value, Tensor]], list[tuple[Value, Value]]]:
        """Joins numbers that must share a unit.

        Returns products with constants, ``(product, number, factor)``, and pairs of compared numbers, whose
        units are joined only if nothing else determines them.
        """
        scaled, compared = [], []
        for value in numbers:
            if value.is_previous and self.is_number(self.nexts[value.data]):
                self.units.join(value, self.nexts[value.data])
        for value in self.order:
            arguments = [argument for argument in value.args if self.is_number(argument)]
            if value in numbers and (value.op in SHARING or self.is_gated(value)):
                for argument in arguments:
                    self.units.join(argument, value)
            elif value in numbers and (factor := self.factor(value)) is not None:
                scaled.append((value, arguments[0], factor.abs()))
            elif value.op in FLIPPED and len(arguments) == 2:
                compared.append((arguments[0], arguments[1]))
        return scaled, compared

    def _is_integer(self, value: Value, states: frozenset[int]) -> bool:
        """Whether `value` is a small integer, such as a counter, if the `states` are integers."""
        if value in self.constant:
            number = self.constant[value]
            return bool(((number == number.round()) & (number.abs() < 2**20)).all())
        if value.is_previous:
            return value.data in states
        if value.op in (*SHARING, "mul"):
            return all(self._is_integer(argument, states) for argument in value.args)
        return value.op == "floor" or self.is_binary(value)


class _Gain(Analysis[float]):
    """Bounds of the derivatives of numbers with respect to one previous state; infinite if unknown."""

    def __init__(self, units: StepUnits, state: int) -> None:
        super().__init__({value: 0.0 for value in units.order if not units.is_number(value)})
        self.units, self.state = units, state

    def leaf(self, value: Value) -> float:
        """1 for the state itself, 0 for other leaves."""
        return float(value.is_previous and value.data == self.state)

    def operation(self, value: Value, row: Operation, args: list[float]) -> float:
        """A bound of the derivative of an operation, from the bounds `args` for its arguments."""
        is_independent = not any(args)
        if is_independent:
            return 0.0
        if row.name in ("add", "sub"):
            return sum(args)
        selects_an_argument = row.name in SHARING or self.units.is_gated(value)
        if selects_an_argument:
            return max(args)
        factor = self.units.factor(value)
        if factor is None:  # a product of two numbers or a function: its slope is not known
            return math.inf
        return max(args) * float(factor.abs().max())

    def product(self, value: Value, args: list[float]) -> float:
        """A product with a matrix has an unknown bound, unless it does not depend on the state."""
        return math.inf if args[0] else 0.0


def row_units(weights: Tensor, limit: int) -> Tensor:
    """The unit of each row of `weights`, ``[rows, inputs]``: weight = integer * unit, within ± `limit`.

    Rows whose weights are multiples of the smallest, such as -1 and 2, are represented exactly.
    """
    sizes = weights.abs()
    largest = sizes.amax(1)
    smallest = torch.where(sizes > 0, sizes, math.inf).amin(1)
    multiples = sizes / smallest[:, None]
    largest_multiple = multiples.amax(1)
    exact = (multiples == multiples.round()).all(1) & (largest_multiple <= limit) & (largest_multiple > 0)
    units = torch.where(exact, smallest / (limit / largest_multiple.clamp(min=1)).floor(), largest / limit)
    return torch.where(largest > 0, units, 1.0)
