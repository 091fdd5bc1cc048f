"""The fixed-point form of a step: every number is an integer times a unit.

    real value = integer * unit

A unit is a positive real number, or one for each channel or neuron. Values that are added, compared or chosen
between share a unit, and constants take the unit of the expression that they are used in. Multiplication by a
constant changes only the unit where that is possible, and rounds elsewhere. So a membrane potential counts in
the unit of its synaptic weights, and a threshold is rounded down.

========================  ============================================================================
``x * c``                 the same integer in another unit, or ``floor(n m / 2^k + 1/2)``, m of 15 bits
``x * (1 - 2^-k)``        ``n - floor(n / 2^k + 1/2)``
``x > c``                 ``n > floor(c / unit)``, exactly; likewise the other comparisons
``x * y``                 operands of at most 17 bits, which saturate at 16 times the measured range
``exp(x)`` and the like   piecewise linear in 16 pieces over the measured range, constant beyond
``s W``                   the matrix in 2 to 8 bits, with a unit for each column
========================  ============================================================================

States that may grow without bound (their own coefficient is above 1, or they feed on each other) saturate at
16 times their measured range. Rounding is to the nearest, halves up.

Source: Jacob et al. (2018), *Quantization and training of neural networks for efficient
integer-arithmetic-only inference*, for units and products with 2^-k.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.analysis.binary import Integers, binary_states, is_binary
from hibana.compiler.analysis.eager import Eager
from hibana.compiler.analysis.units import Units, row_units
from hibana.compiler.graph.analysis import Analysis, Rewriting, reachable
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Step, Value, Values

__all__ = ["FixedStep", "RangesNeeded", "fixed_step", "measured_ranges"]

Range = tuple[float, float]
"""The smallest and the largest number seen on calibration data."""

FRACTION = 15
"""Bits of a factor."""
FINEST = 24
"""The finest fraction is 2^-24."""
STATE = 14
"""Bits of the measured range of a state that saturates."""
OPERAND = 17
"""Bits of an operand of a product of two numbers."""
MARGIN = 16
"""States and operands saturate at this many times their measured range."""
PIECES = 16
"""Linear pieces of a function."""
_SHARING = ("add", "sub", "neg", "abs", "maximum", "minimum", "where")
"""Operations whose arguments and result share a unit."""
_FLIPPED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge", "eq": "eq", "ne": "ne"}
_THRESHOLD: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gt", "le"), torch.floor),
    **dict.fromkeys(("ge", "lt"), torch.ceil),
    **dict.fromkeys(("eq", "ne"), torch.round),
}
_ONE = torch.ones((), dtype=torch.float64, device="cpu")


class RangesNeeded(Exception):  # noqa: N818 # a request, not an error
    """The fixed-point form of a step depends on ranges measured on data."""


@dataclass(frozen=True)
class FixedStep:
    """A step in integers."""

    nexts: tuple[Value, ...]
    """Leaves ``parameter`` are `constants`, leaves ``constant`` `fractions`; products are with `matrices`."""
    constants: tuple[Tensor, ...]
    """Integers, or multiples of 2^-24 where a constant is a single number."""
    fractions: tuple[float, ...]
    """Powers of two."""
    matrices: tuple[Tensor, ...]
    """Integers, ``[from, to]``."""
    units: tuple[Tensor, ...]
    """Of the states."""
    spikes: frozenset[int]
    """The states that are zeros and ones, in a unit of 1."""
    errors: Mapping[str, float]
    """Largest error of each piecewise linear function, and the relative error of each matrix."""


def fixed_step(
    step: Step,
    tensors: Sequence[Tensor],
    rest: Sequence[Tensor],
    unit: Tensor,
    limit: int,
    ranges: Sequence[Range] | None = None,
) -> FixedStep:
    """The fixed-point form of `step`.

    Args:
        step: a step without random numbers, traced in float64.
        tensors: what its prologue takes, in float64.
        rest: the states at rest.
        unit: of the input.
        limit: the largest integer in a matrix.
        ranges: those of :func:`measured_ranges`.

    Raises:
        RangesNeeded: if it depends on `ranges`, and there are none.
        Unsupported: naming the operation that has no integer form.
    """
    nexts = tuple(_Simplified().run(step.nexts))
    return _FixedPoint(step, nexts, tensors, rest, unit, limit, ranges).converted()


def measured_ranges(
    step: Step, tensors: Sequence[Tensor], rest: Sequence[Tensor], inputs: Tensor
) -> list[Range]:
    """The range over `inputs`, ``[T, batch, ...]``, of every number in the fixed-point form of `step`."""
    nexts = _Simplified().run(step.nexts)
    state = [torch.zeros_like(inputs[0], dtype=torch.float64) + value for value in rest]
    ranges: list[Range] = []
    for input_ in inputs.double():
        values = _Real(step, tensors, input_, state)
        state = values.run(nexts)
        now = [(float(values.of(v).min()), float(values.of(v).max())) for v in reachable(nexts)]
        before = ranges or now
        ranges = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(before, now, strict=True)]
    return ranges


class _Simplified(Rewriting):
    """A step with ``floor`` as its only rounding, and without ``fma`` and ``sign``."""

    def operation(self, value: Value, row: Operation, args: list[Value]) -> Value:
        def make(op: str, *arguments: Value) -> Value:
            return Value(op, arguments)

        def ceil(x: Value) -> Value:
            return make("neg", make("floor", make("neg", x)))

        x, zero = args[0], Value("number")
        if row.name == "fma":
            return make("add", make("mul", x, args[1]), args[2])
        if row.name == "ceil":
            return ceil(x)
        if row.name == "trunc":
            return make("where", make("lt", x, zero), ceil(x), make("floor", x))
        if row.name == "sign":
            return make("sub", *(make("to_float", make(op, x, zero)) for op in ("gt", "lt")))
        return super().operation(value, row, args)


class _Real(Eager):
    """The numbers of a step in float64; `input_` and `state` may be missing for what depends on neither."""

    def __init__(
        self,
        step: Step,
        tensors: Sequence[Tensor],
        input_: Tensor | None = None,
        state: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(torch.float64)
        self.step, self.input, self.state = step, input_, state
        self.tensors: list[Tensor] = [value.double() for value in step.prologue(*tensors)]

    def leaf(self, value: Value) -> Tensor:
        if value.is_input and self.input is not None:
            return self.input
        if value.is_previous:
            return self.state[int(value.data)]
        if value.op == "parameter":
            return self.tensors[int(value.data)]
        number = self.step.constants[int(value.data)] if value.op == "constant" else float(value.data)
        return torch.tensor(number, dtype=torch.float64, device="cpu")

    def matrix(self, value: Value) -> Tensor:
        """The matrix of a product, ``[from, to]``."""
        index, transposed = value.matrix
        matrix = self.tensors[self.step.parameters + index]
        return matrix.T if transposed else matrix

    def product(self, value: Value, args: list[Tensor]) -> Tensor:
        return args[0] @ self.matrix(value)


class _Gain(Analysis[float]):
    """Bounds of the derivatives of numbers by one previous state, at any state; infinite if unknown."""

    def __init__(self, form: "_FixedPoint", state: int) -> None:
        super().__init__({value: 0.0 for value in form.order if not form.is_number(value)})
        self.form, self.state = form, state

    def leaf(self, value: Value) -> float:
        return float(value.is_previous and value.data == self.state)

    def operation(self, value: Value, row: Operation, args: list[float]) -> float:
        if not any(args):
            return 0.0
        if row.name in ("add", "sub"):
            return sum(args)
        factor = self.form.factor(value)
        shares = row.name in _SHARING or self.form.is_gated(value)
        return max(args) if shares else math.inf if factor is None else max(args) * float(factor.abs().max())

    def product(self, value: Value, args: list[float]) -> float:
        return math.inf if args[0] else 0.0


class _Fixed(NamedTuple):
    """An integer expression, and its unit."""

    value: Value
    unit: Tensor = _ONE


class _FixedPoint(Analysis[_Fixed]):
    """The conversion of one step. Values are constants, zeros and ones, or numbers."""

    def __init__(
        self,
        step: Step,
        nexts: Sequence[Value],
        tensors: Sequence[Tensor],
        rest: Sequence[Tensor],
        unit: Tensor,
        limit: int,
        ranges: Sequence[Range] | None,
    ) -> None:
        super().__init__()
        self.nexts, self.rest, self.unit, self.limit = nexts, rest, unit, limit
        self.order = reachable(nexts)
        self.ranges = None if ranges is None else dict(zip(self.order, ranges, strict=True))
        self.real = _Real(step, tensors)
        self.spikes = binary_states(step, frozenset(i for i, v in enumerate(rest) if is_binary(v)))
        self.integers = Integers(step, {f"{i}": i for i in range(len(nexts))}, self.spikes)
        self.constant: dict[Value, Tensor] = {}
        for value in self.order:
            leaf = value.op in ("input", "previous", "draw") or value.is_product
            if not leaf and all(argument in self.constant for argument in value.args):
                self.constant[value] = self.real.of(value).double()
        self.values = Values(torch.float64)
        self.make = self.values.make
        self.constants: list[Tensor] = []
        self.matrices: list[Tensor] = []
        self.errors: dict[str, float] = {}
        self.units = Units()

    def converted(self) -> FixedStep:
        """The step in integers."""
        growing = self._growing()
        self._choose_units(bool(growing))
        nexts, units = [], []
        for i, value in enumerate(self.nexts):
            unit = _ONE if i in self.spikes else self._unit_of_state(i)
            after = self._in_unit(value, unit)
            if i in growing:
                low, high = self._range(value)
                range_ = min(low, float(self.rest[i].min())), max(high, float(self.rest[i].max()))
                after = self._saturated(after, self._edge(range_, unit))
            if not after.args and not after.is_input and not after.is_previous:
                after = self.make("add", self.make("mul", Value("input"), self.values.number(0)), after)
            nexts.append(self.make("to_float", after))
            units.append(unit)
        constants, fractions = tuple(self.constants), tuple(self.values.constants)
        form = tuple(nexts), constants, fractions, tuple(self.matrices), tuple(units)
        return FixedStep(*form, self.spikes, self.errors)

    def is_truth(self, value: Value) -> bool:
        return value not in self.constant and self.integers.is_binary(value)

    def is_number(self, value: Value) -> bool:
        return value not in self.constant and not self.is_truth(value)

    def is_gated(self, value: Value) -> bool:
        """Whether `value` is a product with zeros and ones."""
        return value.op == "mul" and any(map(self.is_truth, value.args))

    def factor(self, value: Value) -> Tensor | None:
        """The factor c if `value` is ``x * c`` or ``x / (1 / c)``; None otherwise."""
        if value.op == "div" and value.args[1] in self.constant:
            return 1 / self.constant[value.args[1]]
        return next((self.constant[a] for a in value.args if a in self.constant and value.op == "mul"), None)

    # Units

    def _growing(self) -> frozenset[int]:
        """States that feed on each other, or whose own coefficient may be above 1."""
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

    def _choose_units(self, fine: bool) -> None:
        """Joins values that share a unit; that of the input is divided if the units are to be `fine`."""
        units, numbers = self.units, [value for value in self.order if self.is_number(value)]
        for value in numbers:
            if value.is_previous and self.is_number(self.nexts[int(value.data)]):
                units.join(value, self.nexts[int(value.data)])
        scaled, compared = [], []
        for value in self.order:
            arguments = [argument for argument in value.args if self.is_number(argument)]
            if value in numbers and (value.op in _SHARING or self.is_gated(value)):
                for argument in arguments:
                    units.join(argument, value)
            elif value in numbers and (factor := self.factor(value)) is not None:
                scaled.append((value, arguments[0], factor.abs()))
            elif value.op in _FLIPPED and len(arguments) == 2:
                compared.append(arguments)
        for entry in (value for value in numbers if value.is_input):
            largest = (
                max(max(map(abs, self._range(v))) for v in units.related(entry, numbers)) if fine else 0.0
            )
            bits = STATE - math.log2(max(largest, 1e-30) / float(self.unit.min()))
            units.set(entry, self.unit * 2.0 ** -(min(8, max(0, math.floor(bits))) if fine else 0))
        whole = frozenset(i for i, v in enumerate(self.rest) if bool((v == v.round()).all()))
        while (still := frozenset(i for i in whole if self._is_whole(self.nexts[i], whole))) != whole:
            whole = still
        for value in numbers:
            if self._is_whole(value, whole):
                units.set(value, _ONE)
        for value, argument, ratio in scaled:
            if bool((ratio > 0).all()):
                units.join(value, argument, ratio)
        for one, other in compared:
            units.join(one, other)

    def _is_whole(self, value: Value, states: frozenset[int]) -> bool:
        """Whether `value` is a small integer by itself, as a counter is, if the states `states` are."""
        if value in self.constant:
            number = self.constant[value]
            return bool(((number == number.round()) & (number.abs() < 2**20)).all())
        if value.is_previous:
            return int(value.data) in states
        if value.op in (*_SHARING, "mul"):
            return all(self._is_whole(argument, states) for argument in value.args)
        return value.op == "floor" or self.is_truth(value)

    def _unit(self, value: Value) -> Tensor:
        """The unit of a number, from measured ranges if nothing else determines it."""
        if (unit := self.units.of(value)) is None:
            together = self.units.related(value, self.order)
            sizes = [max(map(abs, self._range(v))) / self.units.ratio(v, value) for v in together]
            largest = max(
                float(torch.as_tensor(size, dtype=torch.float64, device="cpu").max()) for size in sizes
            )
            unit = torch.tensor((largest or 1.0) / 2**FRACTION, dtype=torch.float64, device="cpu")
            self.units.set(value, unit)
        return unit

    def _unit_of_state(self, state: int) -> Tensor:
        before = (value for value in self.order if value.is_previous and value.data == state)
        numbers = [value for value in (*before, self.nexts[state]) if self.is_number(value)]
        return self._unit(numbers[0]) if numbers else _ONE

    def _range(self, value: Value) -> Range:
        if self.ranges is None:
            raise RangesNeeded
        return self.ranges[value]

    # Integer expressions

    def _constant(self, integers: Tensor) -> Value:
        """A leaf for constant `integers`, or for a fraction that is the same everywhere."""
        self.constants.append(integers.flatten()[0] if _is_uniform(integers) else integers)
        return Value("parameter", data=len(self.constants) - 1, scalar=_is_uniform(integers))

    def _divided(self, value: Value, places: int) -> Value:
        """``floor(value / 2^places + 1/2)``."""
        if places == 0:
            return value
        return self._nearest(self.make("mul", value, self.values.number(2.0**-places)))

    def _nearest(self, value: Value) -> Value:
        return self.make("floor", self.make("add", value, self.values.number(0.5)))

    def _scaled(self, value: Value, ratio: Tensor) -> Value:
        """The integer `value` times `ratio`, rounded to the nearest."""
        if bool((ratio == 1).all()):
            return value
        if bool((ratio < 0).all()):
            return self.make("neg", self._scaled(value, -ratio))
        lost = 1 - float(ratio.flatten()[0])
        if _is_uniform(ratio) and 0 < lost < 1 and math.frexp(lost)[0] == 0.5:  # a shift
            return self.make("sub", value, self._divided(value, 1 - math.frexp(lost)[1]))
        places = _places(ratio)
        whole = (ratio * 2.0**places).round()
        if bool((whole % 2**places == 0).all()):
            return self.make("mul", value, self._constant(whole / 2**places))
        if _is_uniform(whole):
            return self._nearest(self.make("mul", value, self._constant(whole / 2**places)))
        return self._divided(self.make("mul", value, self._constant(whole)), places)

    def _in_unit(self, value: Value, unit: Tensor) -> Value:
        """`value` of any kind as an integer in `unit`."""
        if value in self.constant:
            return self._constant((self.constant[value] / unit).round())
        fixed = self.of(value)
        if not self.is_truth(value) or bool((unit == 1).all()):
            return self._scaled(fixed.value, fixed.unit / unit)
        return self.make("mul", fixed.value, self._constant((1 / unit).round()))

    def _bits(self, value: Value) -> Value:
        """`value`, a condition, as truth values."""
        return self.make(
            "to_bool", self._in_unit(value, _ONE) if value in self.constant else self.of(value).value
        )

    def _saturated(self, value: Value, edge: float) -> Value:
        """`value`, or the nearest of -edge and edge."""
        edges = torch.tensor([-edge, edge], dtype=torch.float64, device="cpu")
        low, high = map(self._constant, edges)
        return self.make("minimum", self.make("maximum", value, low), high)

    def _edge(self, range_: Range, unit: Tensor) -> float:
        """The integer at which numbers of a measured range saturate, a power of two less 1."""
        largest = MARGIN * max(map(abs, range_)) / float(unit.min())
        return 2.0 ** min(30, max(12, math.ceil(math.log2(largest + 1)))) - 1

    def _operand(self, value: Value) -> _Fixed:
        """A number within `OPERAND` bits."""
        fixed = self.of(value)
        edge = self._edge(self._range(value), fixed.unit)
        shift = max(0, round(math.log2(edge + 1)) - OPERAND)
        return _Fixed(self._divided(self._saturated(fixed.value, edge), shift), fixed.unit * 2.0**shift)

    # Leaves and operations

    def run(self, values: Iterable[Value]) -> list[_Fixed]:
        """As :meth:`Analysis.run`, but only arguments that an integer form uses are converted."""
        values = list(values)
        for value in values:
            if value not in self.results:
                self.results[value] = self.evaluate(value, [])
        return [self.results[value] for value in values]

    def leaf(self, value: Value) -> _Fixed:
        return _Fixed(
            value, self.unit if value.is_input else _ONE if self.is_truth(value) else self._unit(value)
        )

    def operation(self, value: Value, row: Operation, args: list[_Fixed]) -> _Fixed:
        if row.name in _FLIPPED:
            return _Fixed(self._compared(value))
        if row.takes_booleans and row.name != "where":
            return _Fixed(self.make(row.name, *map(self._bits, value.args)))
        unit = _ONE if self.is_truth(value) else self._unit(value)
        if row.name in _SHARING or self.is_truth(value):
            condition = [self._bits(value.args[0])] if row.name == "where" else []
            operands = (self._in_unit(argument, unit) for argument in value.args[len(condition) :])
            return _Fixed(self.make(row.name, *condition, *operands), unit)
        if row.name == "floor":
            return self._floor(value)
        if self.is_gated(value):
            truth, number = sorted(value.args, key=self.is_truth, reverse=True)
            return _Fixed(self.make("mul", self.of(truth).value, self._in_unit(number, unit)), unit)
        if (factor := self.factor(value)) is not None:
            fixed = self.of(next(argument for argument in value.args if argument not in self.constant))
            return _Fixed(self._scaled(fixed.value, factor * (fixed.unit / unit)), unit)
        one, other = value.args[0], value.args[-1]
        if row.name == "mul" or (row.name == "div" and self.is_number(one)):
            second = (
                self._operand(other)
                if row.name == "mul"
                else self._pieces(value, other, torch.reciprocal, None)
            )
            first = self._operand(one)
            product = self.make("mul", first.value, second.value)
            return _Fixed(self._scaled(product, first.unit * second.unit / unit), unit)
        return self._function(value, row, unit)

    def _compared(self, value: Value) -> Value:
        """A comparison, exact if one side is a constant."""
        op, (one, other) = value.op, value.args
        if one.op == "sub" and other in self.constant and bool((self.constant[other] == 0).all()):
            one, other = one.args
        if one in self.constant or (self.is_truth(one) and self.is_number(other)):
            op, one, other = _FLIPPED[op], other, one
        left = self.of(one)
        if other not in self.constant:
            return self.make(op, left.value, self._in_unit(other, left.unit))
        threshold = _THRESHOLD[op](self.constant[other] / left.unit)
        return self.make(op, left.value, self._constant(threshold.clamp(-(2.0**31), 2.0**31)))

    def product(self, value: Value, args: list[_Fixed]) -> _Fixed:
        (argument,), matrix, unit = value.args, self.real.matrix(value), self._unit(value)
        operand = self.of(argument) if self.is_truth(argument) else self._operand(argument)
        matrix = matrix * operand.unit.reshape(-1, 1)
        columns = row_units(matrix.T, self.limit)
        integers = (matrix / columns).round()
        error = (integers * columns - matrix).norm() / matrix.norm().clamp(min=1e-30)
        self.errors[f"matrix {len(self.matrices)}"] = float(error)
        self.matrices.append(integers)
        summed = self.make("product", operand.value, data=2 * (len(self.matrices) - 1))
        return _Fixed(self._scaled(summed, columns / unit), unit)

    def _floor(self, value: Value) -> _Fixed:
        fixed = self.of(value.args[0])
        places = _places(fixed.unit)
        scaled = self.make("mul", fixed.value, self._constant((fixed.unit * 2.0**places).round()))
        return _Fixed(self.make("floor", self.make("mul", scaled, self.values.number(2.0**-places))))

    def _function(self, value: Value, row: Operation, unit: Tensor) -> _Fixed:
        """A function of one number, piecewise linear."""
        numbers = [argument for argument in value.args if argument not in self.constant]
        others = {a: self.constant[a] for a in value.args if a in self.constant}
        if len(numbers) != 1 or self.is_truth(numbers[0]) or not all(map(_is_uniform, others.values())):
            raise Unsupported(
                f"{value.op} has no integer form, as it is no function of one number with the same constants "
                "for all neurons"
            )

        def function(x: Tensor) -> Tensor:
            return row.function(*(others[a].flatten()[0] if a in others else x for a in value.args))

        return self._pieces(value, numbers[0], function, unit)

    def _pieces(
        self, value: Value, argument: Value, function: Callable[[Tensor], Tensor], unit: Tensor | None
    ) -> _Fixed:
        """`function` of a number, linear between knots that lie closer where it bends more."""
        fixed, (low, high) = self.of(argument), self._range(argument)
        knots, heights, error = _knots(function, low, high, value.op)
        self.errors[f"{value.op} on [{float(knots[0]):.3g}, {float(knots[-1]):.3g}]"] = error
        if unit is None:
            unit = (heights.abs().max() / 2**FRACTION).clamp(min=1e-30)
        ends = [(knot / fixed.unit).round() for knot in knots]
        slopes = [
            (heights[i + 1] - heights[i]) / unit / (ends[i + 1] - ends[i]).clamp(min=1)
            for i in range(len(knots) - 1)
        ]
        places = _places(torch.stack([slope.abs().max() for slope in slopes]))
        total, start = self.values.number(0), (heights[0] / unit * 2.0**places).round()
        for slope, left, right in zip(slopes, ends, ends[1:], strict=False):
            factor = (slope * 2.0**places).round()
            start = start - factor * left
            within = self.make("maximum", fixed.value, self._constant(left))
            within = self.make("minimum", within, self._constant(right))
            total = self.make("add", self.make("mul", within, self._constant(factor)), total)
        steps = (start / 2**places).floor()  # apart, so that all constants have 32 bits
        total = self.make("add", total, self._constant(start - steps * 2**places))
        return _Fixed(self.make("add", self._divided(total, places), self._constant(steps)), unit)


def _is_uniform(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _places(ratios: Tensor) -> int:
    """Bits after the point of `ratios`, so that the largest has `FRACTION` bits."""
    largest = float(ratios.abs().max())
    return min(FINEST, max(0, FRACTION - math.frexp(largest)[1])) if largest else 0


def _knots(
    function: Callable[[Tensor], Tensor], low: float, high: float, name: str
) -> tuple[Tensor, Tensor, float]:
    """Ends of linear pieces over a range and a sixteenth of it on both sides, their heights, and the error.

    Each piece has the same share of the square root of the curvature.
    """
    beyond = ((high - low) or 1.0) / 16
    for edge in (beyond, 0.0):
        x = torch.linspace(low - edge, high + edge, 4097, dtype=torch.float64, device="cpu")
        y = function(x)
        if bool(y.isfinite().all()):
            break
    else:
        raise Unsupported(f"{name} is not finite everywhere from {low:g} to {high:g}, its argument's range")
    bend = y.diff(n=2).abs().sqrt()
    share = (bend + bend.mean() / 4 + 1e-30).cumsum(0)
    inner = (
        torch.searchsorted(
            share, share[-1] * torch.arange(1, PIECES, dtype=torch.float64, device="cpu") / PIECES
        )
        + 1
    )
    at = torch.tensor(sorted({0, len(x) - 1, *inner.tolist()}), dtype=torch.int64, device="cpu")
    knots, heights = x[at], y[at]
    middle = function((knots[1:] + knots[:-1]) / 2) - (heights[1:] + heights[:-1]) / 2
    return knots, heights, float(middle.abs().max())
