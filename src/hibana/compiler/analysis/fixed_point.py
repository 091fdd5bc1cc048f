"""The fixed-point form of a step: every number is an integer times a unit.

    real value = integer * unit

A unit is a positive real number, or one number per channel or neuron. Values that are added, compared or
selected share a unit (:mod:`hibana.compiler.analysis.units`), and constants take the unit of the expression
that uses them. A product with a constant changes only the unit if possible; otherwise it is rounded. So a
membrane potential has the unit of its synaptic weights, and a threshold is rounded down.

========================  ============================================================================
``x * c``                 the same integer in another unit, or ``floor(n m / 2^k + 1/2)`` with 15 bits in m
``x * (1 - 2^-k)``        ``n - floor(n / 2^k + 1/2)``
``x > c``                 ``n > floor(c / unit)``, exactly; likewise the other comparisons
``x * y``                 operands of at most 17 bits, which saturate at 16 times the measured range
functions such as exp     piecewise linear in 16 pieces over the measured range, constant outside it
``s W``                   the matrix in 2 to 8 bits, with a unit for each column
========================  ============================================================================

States that may grow without bound (their own coefficient exceeds 1, or they feed each other) saturate at 16
times their measured range. Numbers are rounded to the nearest integer, halves up.

Source: Jacob et al. (2018), *Quantization and training of neural networks for efficient
integer-arithmetic-only inference*, for units and products with 2^-k.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.analysis.real_values import Range, measured_ranges, simplified_nexts
from hibana.compiler.analysis.units import FLIPPED, FRACTION, ONE, SHARING, RangesNeeded, StepUnits, row_units
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Step, Value, Values

__all__ = ["FixedStep", "Range", "RangesNeeded", "fixed_step", "measured_ranges"]

FINEST = 24
"""Fractions are multiples of 2^-24."""
OPERAND = 17
"""Bits of an operand of a product of two numbers."""
MARGIN = 16
"""States and operands saturate at this multiple of their measured range."""
PIECES = 16
"""Linear pieces of a function."""
_ROUND_THRESHOLD: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gt", "le"), torch.floor),
    **dict.fromkeys(("ge", "lt"), torch.ceil),
    **dict.fromkeys(("eq", "ne"), torch.round),
}
"""By comparison of an integer with a constant: how the constant is rounded without changing the result."""


@dataclass(frozen=True)
class FixedStep:
    """A step in integers."""

    nexts: tuple[Value, ...]
    """The next states. Leaves ``parameter`` are `constants`, leaves ``constant`` are `fractions`, products
    are with `matrices`."""
    constants: tuple[Tensor, ...]
    """Integers, or multiples of 2^-24 for a constant that is one number."""
    fractions: tuple[float, ...]
    """Powers of two."""
    matrices: tuple[Tensor, ...]
    """Integers, ``[from, to]``."""
    units: tuple[Tensor, ...]
    """The units of the states."""
    spikes: frozenset[int]
    """Indices of the states that are 0 or 1, in a unit of 1."""
    errors: Mapping[str, float]
    """The largest error of each piecewise linear function, and the relative error of each matrix."""


def fixed_step(
    step: Step,
    tensors: Sequence[Tensor],
    initial: Sequence[Tensor],
    unit: Tensor,
    limit: int,
    ranges: Sequence[Range] | None = None,
) -> FixedStep:
    """The fixed-point form of `step`.

    Args:
        step: a step without random numbers, traced in float64.
        tensors: the arguments of its prologue, in float64.
        initial: its initial states.
        unit: the unit of the input.
        limit: the largest integer in a matrix.
        ranges: the result of :func:`measured_ranges`.

    Raises:
        RangesNeeded: if the form depends on `ranges`, and they are None.
        Unsupported: naming the operation that has no integer form.
    """
    units = StepUnits(step, simplified_nexts(step), tensors, initial, unit, ranges)
    return _FixedPoint(units, limit).converted()


class _Fixed(NamedTuple):
    """An integer expression, and its unit."""

    value: Value
    unit: Tensor = ONE


class _FixedPoint(Analysis[_Fixed]):
    """Converts the values of one step to integer expressions."""

    def __init__(self, units: StepUnits, limit: int) -> None:
        super().__init__()
        self.units, self.limit = units, limit
        self.constant = units.constant
        self.values = Values(torch.float64)
        self.make = self.values.make
        self.constants: list[Tensor] = []
        self.matrices: list[Tensor] = []
        self.errors: dict[str, float] = {}

    def converted(self) -> FixedStep:
        """The step in integers."""
        spikes, nexts, state_units = self.units.spikes, [], []
        for i, value in enumerate(self.units.nexts):
            unit = ONE if i in spikes else self.units.of_state(i)
            after = self._in_unit(value, unit)
            if i in self.units.growing:
                (low, high), initial = self.units.range(value), self.units.initial[i]
                range_ = min(low, float(initial.min())), max(high, float(initial.max()))
                after = self._saturated(after, self._edge(range_, unit))
            if not after.args and not after.is_input and not after.is_previous:
                # a constant has the shape of the input after adding 0 * input
                after = self.make("add", self.make("mul", Value("input"), self.values.number(0)), after)
            nexts.append(self.make("to_float", after))
            state_units.append(unit)
        constants, fractions = tuple(self.constants), tuple(self.values.constants)
        form = tuple(nexts), constants, fractions, tuple(self.matrices), tuple(state_units)
        return FixedStep(*form, spikes, self.errors)

    # Integer expressions

    def _constant(self, integers: Tensor) -> Value:
        """A leaf for constant `integers`, or for a fraction that is the same for all neurons."""
        self.constants.append(integers.flatten()[0] if _is_uniform(integers) else integers)
        return Value("parameter", data=len(self.constants) - 1, scalar=_is_uniform(integers))

    def _divided(self, value: Value, places: int) -> Value:
        """``floor(value / 2^places + 1/2)``."""
        if places == 0:
            return value
        return self._nearest(self.make("mul", value, self.values.number(2.0**-places)))

    def _nearest(self, value: Value) -> Value:
        """``floor(value + 1/2)``."""
        return self.make("floor", self.make("add", value, self.values.number(0.5)))

    def _scaled(self, value: Value, ratio: Tensor) -> Value:
        """The integer `value` times `ratio`, rounded to the nearest integer."""
        if bool((ratio == 1).all()):
            return value
        if bool((ratio < 0).all()):
            return self.make("neg", self._scaled(value, -ratio))
        leak = 1 - float(ratio.flatten()[0])
        if _is_uniform(ratio) and 0 < leak < 1 and math.frexp(leak)[0] == 0.5:  # 1 - 2^-k: a shift
            return self.make("sub", value, self._divided(value, 1 - math.frexp(leak)[1]))
        places = _places(ratio)
        factor = (ratio * 2.0**places).round()
        if bool((factor % 2**places == 0).all()):
            return self.make("mul", value, self._constant(factor / 2**places))
        if _is_uniform(factor):
            return self._nearest(self.make("mul", value, self._constant(factor / 2**places)))
        return self._divided(self.make("mul", value, self._constant(factor)), places)

    def _in_unit(self, value: Value, unit: Tensor) -> Value:
        """`value`, constant, binary or a number, as an integer in `unit`."""
        if value in self.constant:
            return self._constant((self.constant[value] / unit).round())
        fixed = self.of(value)
        if not self.units.is_binary(value) or bool((unit == 1).all()):
            return self._scaled(fixed.value, fixed.unit / unit)
        return self.make("mul", fixed.value, self._constant((1 / unit).round()))

    def _bits(self, value: Value) -> Value:
        """The boolean that is true where `value` is not zero."""
        return self.make(
            "to_bool", self._in_unit(value, ONE) if value in self.constant else self.of(value).value
        )

    def _saturated(self, value: Value, edge: float) -> Value:
        """`value` clamped to the range from ``-edge`` to `edge`."""
        edges = torch.tensor([-edge, edge], dtype=torch.float64, device="cpu")
        low, high = map(self._constant, edges)
        return self.make("minimum", self.make("maximum", value, low), high)

    def _edge(self, range_: Range, unit: Tensor) -> float:
        """The largest integer of a number with the measured `range_` in `unit`, beyond which it saturates.

        It is a power of two minus 1, at least 16 times the measured range.
        """
        largest = MARGIN * max(map(abs, range_)) / float(unit.min())
        return 2.0 ** min(30, max(12, math.ceil(math.log2(largest + 1)))) - 1

    def _operand(self, value: Value) -> _Fixed:
        """The number `value` with at most `OPERAND` bits."""
        fixed = self.of(value)
        edge = self._edge(self.units.range(value), fixed.unit)
        shift = max(0, round(math.log2(edge + 1)) - OPERAND)
        return _Fixed(self._divided(self._saturated(fixed.value, edge), shift), fixed.unit * 2.0**shift)

    # Leaves and operations

    def run(self, values: Iterable[Value]) -> list[_Fixed]:
        """The results of `values`; only arguments that their integer forms use are converted too."""
        values = list(values)
        for value in values:
            if value not in self.results:
                self.results[value] = self.evaluate(value, [])
        return [self.results[value] for value in values]

    def leaf(self, value: Value) -> _Fixed:
        """The input, a state or a draw, which are integers already, with its unit."""
        if value.is_input:
            return _Fixed(value, self.units.input_unit)
        return _Fixed(value, ONE if self.units.is_binary(value) else self.units.of(value))

    def operation(self, value: Value, row: Operation, args: list[_Fixed]) -> _Fixed:
        """The integer form of an operation and its unit; it converts the arguments as it needs them."""
        if row.name in FLIPPED:
            return _Fixed(self._compared(value))
        if row.takes_booleans and row.name != "where":
            return _Fixed(self.make(row.name, *map(self._bits, value.args)))
        unit = ONE if self.units.is_binary(value) else self.units.of(value)
        if row.name in SHARING or self.units.is_binary(value):
            condition = [self._bits(value.args[0])] if row.name == "where" else []
            operands = (self._in_unit(argument, unit) for argument in value.args[len(condition) :])
            return _Fixed(self.make(row.name, *condition, *operands), unit)
        if row.name == "floor":
            return self._floor(value)
        if self.units.is_gated(value):
            binary, number = sorted(value.args, key=self.units.is_binary, reverse=True)
            return _Fixed(self.make("mul", self.of(binary).value, self._in_unit(number, unit)), unit)
        if (factor := self.units.factor(value)) is not None:
            fixed = self.of(next(argument for argument in value.args if argument not in self.constant))
            return _Fixed(self._scaled(fixed.value, factor * (fixed.unit / unit)), unit)
        one, other = value.args[0], value.args[-1]
        if row.name == "mul" or (row.name == "div" and self.units.is_number(one)):
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
        """A comparison; it is exact if one side is a constant."""
        op, (one, other) = value.op, value.args
        if one.op == "sub" and other in self.constant and bool((self.constant[other] == 0).all()):
            one, other = one.args
        if one in self.constant or (self.units.is_binary(one) and self.units.is_number(other)):
            op, one, other = FLIPPED[op], other, one
        left = self.of(one)
        if other not in self.constant:
            return self.make(op, left.value, self._in_unit(other, left.unit))
        threshold = _ROUND_THRESHOLD[op](self.constant[other] / left.unit)
        return self.make(op, left.value, self._constant(threshold.clamp(-(2.0**31), 2.0**31)))

    def product(self, value: Value, args: list[_Fixed]) -> _Fixed:
        """A product with a matrix, which is rounded to integers with a unit for each column."""
        (argument,), matrix, unit = value.args, self.units.real.matrix(value), self.units.of(value)
        operand = self.of(argument) if self.units.is_binary(argument) else self._operand(argument)
        matrix = matrix * operand.unit.reshape(-1, 1)
        columns = row_units(matrix.T, self.limit)
        integers = (matrix / columns).round()
        error = (integers * columns - matrix).norm() / matrix.norm().clamp(min=1e-30)
        self.errors[f"matrix {len(self.matrices)}"] = float(error)
        self.matrices.append(integers)
        summed = self.make("product", operand.value, data=2 * (len(self.matrices) - 1))
        return _Fixed(self._scaled(summed, columns / unit), unit)

    def _floor(self, value: Value) -> _Fixed:
        """``floor`` of a number, in a unit of 1."""
        fixed = self.of(value.args[0])
        places = _places(fixed.unit)
        scaled = self.make("mul", fixed.value, self._constant((fixed.unit * 2.0**places).round()))
        return _Fixed(self.make("floor", self.make("mul", scaled, self.values.number(2.0**-places))))

    def _function(self, value: Value, row: Operation, unit: Tensor) -> _Fixed:
        """Replaces `value`, a function of one number, by a piecewise linear one with the result's `unit`."""
        numbers = [argument for argument in value.args if argument not in self.constant]
        others = {a: self.constant[a] for a in value.args if a in self.constant}
        is_unary = len(numbers) == 1 and not self.units.is_binary(numbers[0])
        if not is_unary or not all(map(_is_uniform, others.values())):
            raise Unsupported(
                f"{value.op} has no integer form: it must be a function of one number, with constants that "
                "all neurons share"
            )

        def function(x: Tensor) -> Tensor:
            """The operation as a function of its only argument that is no constant."""
            return row.function(*(others[a].flatten()[0] if a in others else x for a in value.args))

        return self._pieces(value, numbers[0], function, unit)

    def _pieces(
        self, value: Value, argument: Value, function: Callable[[Tensor], Tensor], unit: Tensor | None
    ) -> _Fixed:
        """The piecewise linear form of a `function` of the number `argument`, in `unit`.

        If `unit` is None, the result has `FRACTION` bits.
        """
        fixed, (low, high) = self.of(argument), self.units.range(argument)
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
        steps = (start / 2**places).floor()  # separately, so that all constants fit in 32 bits
        total = self.make("add", total, self._constant(start - steps * 2**places))
        return _Fixed(self.make("add", self._divided(total, places), self._constant(steps)), unit)


def _is_uniform(values: Tensor) -> bool:
    """Whether all `values` are equal."""
    return bool((values == values.flatten()[0]).all())


def _places(ratios: Tensor) -> int:
    """The number of fractional bits with which the largest of `ratios` has `FRACTION` bits."""
    largest = float(ratios.abs().max())
    return min(FINEST, max(0, FRACTION - math.frexp(largest)[1])) if largest else 0


def _knots(
    function: Callable[[Tensor], Tensor], low: float, high: float, name: str
) -> tuple[Tensor, Tensor, float]:
    """Ends of linear pieces of `function`, its values there, and the largest error at the pieces' centers.

    The pieces cover the range and a sixteenth of it on both sides, if `function` is finite there. The
    integral of the square root of the curvature is the same for each piece.
    """
    margin = ((high - low) or 1.0) / 16
    for extra in (margin, 0.0):
        x = torch.linspace(low - extra, high + extra, 4097, dtype=torch.float64, device="cpu")
        y = function(x)
        if bool(y.isfinite().all()):
            break
    else:
        raise Unsupported(f"{name} is not finite on the range of its argument, {low:g} to {high:g}")
    curvature = y.diff(n=2).abs().sqrt()
    integral = (curvature + curvature.mean() / 4 + 1e-30).cumsum(0)
    shares = torch.arange(1, PIECES, dtype=torch.float64, device="cpu") / PIECES
    inner = torch.searchsorted(integral, integral[-1] * shares) + 1
    at = torch.tensor(sorted({0, len(x) - 1, *inner.tolist()}), dtype=torch.int64, device="cpu")
    knots, heights = x[at], y[at]
    middle = function((knots[1:] + knots[:-1]) / 2) - (heights[1:] + heights[:-1]) / 2
    return knots, heights, float(middle.abs().max())
