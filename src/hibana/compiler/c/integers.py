"""The forward pass of a step in integers of C, with bounds that prove that nothing overflows.

Each value is an integer times a power of two, ``n * 2^-e``, with lower and upper bounds. Sums align
exponents, a product with a power of two changes only the exponent, ``floor`` shifts. PyTorch's floating point
is exact for such numbers, so the results are equal bit for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from hibana.compiler.analysis.fixed_point import FINEST
from hibana.compiler.analysis.text import LONGEST
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.passes import Stores
from hibana.compiler.graph.step import Value

Bounds = tuple[int, int]
"""Lower and upper bound of the integer of a value."""

_TEXT = {
    "maximum": "({0} > {1} ? {0} : {1})",
    "minimum": "({0} < {1} ? {0} : {1})",
    "abs": "({0} < 0 ? -{0} : {0})",
    "to_float": "{0}",
    "ge 0": "({0} >> {1})",
    "lt 0": "({0} < 0 ? ~(~{0} >> {1}) : {0} >> {1})",
}
"""Forms of operations that differ from floating point; ``ge 0`` and ``lt 0`` are right shifts by ``{1}``. C99
does not define shifts of negative integers, so they shift the complement."""


@dataclass(frozen=True)
class Integer:
    """A value in C: an integer expression, bounds of the integer, and the exponent e of ``n * 2^-e``."""

    text: str
    low: int
    high: int
    exponent: int = 0

    @property
    def is_wide(self) -> bool:
        """Whether it needs 64 bits."""
        return self.low <= -(2**31) or self.high >= 2**31

    @property
    def is_boolean(self) -> bool:
        """Whether it is always 0 or 1."""
        return self.exponent == 0 and self.low >= 0 and self.high <= 1

    @property
    def number(self) -> Fraction | None:
        """The number of a constant; None for other values."""
        return Fraction(self.low, 2**self.exponent) if self.low == self.high else None

    def with_exponent(self, exponent: int) -> "Integer":
        """The same number with a larger exponent."""
        factor = 1 << (exponent - self.exponent)
        if factor == 1:
            return self
        scaled = Integer("", self.low * factor, self.high * factor, exponent)
        text = f"({'(int64_t)' if scaled.is_wide else ''}{self.text} * {factor})"
        return replace(scaled, text=f"({scaled.low})" if self.low == self.high else text)


def integer_statements(
    stores: Stores, leaf_values: Mapping[Leaf, str | float], bounds: Mapping[Leaf, Bounds]
) -> tuple[list[str], dict[Leaf, Integer], int]:
    """The body of a loop over neurons that computes `stores`, their expressions, and the largest integer.

    Args:
        stores: the values to compute.
        leaf_values: the C expression of each leaf, or its number if all neurons share it.
        bounds: of the leaves.

    Raises:
        Unsupported: if an operation has no form in integers, a constant is no multiple of 2^-24, or an
            integer does not fit in 64 bits.
    """
    writing = _Writing(leaf_values, bounds)
    results = dict(zip(stores, writing.run(stores.values()), strict=True))
    largest = max((max(-value.low, value.high) for value in writing.results.values()), default=0)
    return writing.lines, results, largest


class _Writing(Analysis[Integer]):
    """Collects the statements of one loop body; its results are expressions."""

    def __init__(self, leaves: Mapping[Leaf, str | float], bounds: Mapping[Leaf, Bounds]) -> None:
        super().__init__()
        self.leaves, self.bounds = leaves, bounds
        self.lines: list[str] = []

    def on_number(self, value: Value) -> Integer:
        """The expression of a number, which must be a multiple of 2^-24."""
        return _constant(float(value.data))

    def leaf(self, value: Value) -> Integer:
        """The expression of a leaf with its bounds, or the constant that stands for it."""
        expression = self.leaves[value.leaf]
        if isinstance(expression, str):
            return Integer(expression, *self.bounds[value.leaf])
        return _constant(expression)

    def operation(self, value: Value, row: Operation, args: list[Integer]) -> Integer:
        """The result of an operation with its bounds, usually as a new variable of C."""
        if row.name == "floor":
            return self._floor(args[0])
        if row.name == "mul":
            return self._named(self._product(row, *args))
        if not row.boolean and (not row.integer or row.bounds is None):
            raise Unsupported(f"operation {row.name!r} has no form in integers")
        if row.name == "sub" and args[0].number == 1 and args[1].is_boolean:
            return replace(args[1], text=f"(!{args[1].text})", low=0, high=1)
        exponent = max(arg.exponent for arg in args[-2:])
        args = [*args[:-2], *(arg.with_exponent(exponent) for arg in args[-2:])]
        result = self._result(row, args, exponent)
        if (tight := self._leak_bounds(value, result)) is not None:
            result = replace(result, low=tight[0], high=tight[1])
        return self._named(result)

    def _result(self, row: Operation, args: list[Integer], exponent: int) -> Integer:
        """The expression and the bounds of the operation `row` on `args`, whose exponents are equal.

        `exponent` is that of the result e: its number is ``n * 2^-e`` for the integer n.
        """
        bounds = (0, 1) if row.boolean or row.bounds is None else row.bounds(*((a.low, a.high) for a in args))
        result = Integer("", int(bounds[0]), int(bounds[1]), 0 if row.boolean else exponent)
        cast = "(int64_t)" if result.is_wide and row.name in ("add", "sub", "mul") else ""
        texts = [f"{cast}{args[0].text}", *(arg.text for arg in args[1:])]
        return replace(result, text=_TEXT.get(row.name, row.c).format(*texts))

    def _product(self, row: Operation, one: Integer, other: Integer) -> Integer:
        """The product of two values; a selection if one of them is a boolean."""
        exponent = one.exponent + other.exponent
        result = self._result(row, [one, other], exponent)
        for first, second in ((one, other), (other, one)):
            if first.is_boolean and first.number is None:
                return replace(result, text=f"({first.text} ? {second.text} : 0)")
            if first.low == first.high == 1:
                return replace(second, exponent=exponent)
        return result

    def _floor(self, one: Integer) -> Integer:
        """The floor of the fixed-point number `one`, an integer divided by ``2^exponent``, by a shift."""
        if one.exponent <= 0:
            return one
        text = _TEXT["lt 0" if one.low < 0 else "ge 0"].format(self._named(one).text, one.exponent)
        return self._named(Integer(text, one.low >> one.exponent, one.high >> one.exponent))

    def _leak_bounds(self, value: Value, result: Integer) -> Bounds | None:
        """Bounds of ``v - floor(v c + h)`` for c from 0 to 1, which increases with v; else None."""
        if value.op != "sub" or value.args[1].op != "floor" or result.exponent:
            return None
        (inner,) = value.args[1].args
        product, *added = inner.args if inner.op == "add" else (inner,)
        if product.op != "mul" or value.args[0] not in product.args:
            return None
        numbers = [self.of(a).number for a in (*product.args, *added) if a is not value.args[0]]
        factor, half = (*numbers, Fraction(0))[:2]
        if factor is None or half is None or not 0 <= factor <= 1:
            return None
        before = self.of(value.args[0])
        low, high = (end - math.floor(end * factor + half) for end in (before.low, before.high))
        return low, high

    def _named(self, result: Integer) -> Integer:
        """`result` assigned to a variable, unless it is a name, a number or a short boolean."""
        if result.low <= -(2**63) or result.high >= 2**63:
            raise Unsupported("a number of the step does not fit in 64 bits")
        is_short = result.is_boolean and len(result.text) <= LONGEST
        if is_short or result.text.isidentifier() or result.text.strip("(-)").isdecimal():
            return result
        name = f"a{len(self.lines)}"
        self.lines.append(f"const {'int64_t' if result.is_wide else 'int32_t'} {name} = {result.text};")
        return replace(result, text=name)


def _constant(number: float) -> Integer:
    """The constant `number`, a multiple of 2^-24."""
    exact = Fraction(number)
    exponent = exact.denominator.bit_length() - 1
    if exponent > FINEST:
        raise Unsupported(f"{number:g} is no integer, nor a multiple of 2^-{FINEST}")
    text = f"{exact.numerator}" if number >= 0 else f"({exact.numerator})"
    return Integer(text, exact.numerator, exact.numerator, exponent)
