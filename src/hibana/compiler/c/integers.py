"""The forward pass of a step in integers, with bounds that prove that nothing overflows.

Each value is an integer times a power of two, ``n * 2^-e``, with lower and upper bounds. Sums align
exponents, a product with a power of two changes only the exponent, ``floor`` shifts. PyTorch's floating point
is exact for such numbers, so the results are equal bit for bit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from hibana.compiler.analysis.fixed_point import FINEST
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.passes import Stores
from hibana.compiler.graph.step import Value as StepValue
from hibana.compiler.pointwise import POINTWISE
from hibana.runtime.kernels import BIT, INT, LONG, Code, Type, Value

Bounds = tuple[int, int]
"""Lower and upper bound of the integer of a value."""

_FUNCTIONS: dict[str, Callable[..., Value]] = {
    **POINTWISE,
    "maximum": lambda x, y: (x > y).select(x, y),
    "minimum": lambda x, y: (x < y).select(x, y),
    "neg": lambda x: 0 - x,
    "abs": lambda x: (x < 0).select(0 - x, x),
}
"""The function of values for each operation on integers, which have no NaN."""


@dataclass(frozen=True)
class Integer:
    """A value in the loop, the bounds of its integer, and the exponent e of ``n * 2^-e``."""

    value: Value
    """A boolean, or an integer of 32 bits, or of 64 if its bounds need them."""
    low: int
    high: int
    exponent: int = 0

    @property
    def type(self) -> Type:
        """The type that holds its integer: 32 bits, or 64 if the bounds need them."""
        return _type_of(self.low, self.high)

    @property
    def is_boolean(self) -> bool:
        """Whether it is always 0 or 1."""
        return self.exponent == 0 and self.low >= 0 and self.high <= 1

    @property
    def number(self) -> Fraction | None:
        """The number of a constant; None for other values."""
        return Fraction(self.low, 2**self.exponent) if self.low == self.high else None

    @property
    def truth(self) -> Value:
        """Whether it is not zero."""
        return self.value if self.value.type == BIT else self.value.differs(0)

    @property
    def opposite(self) -> Value:
        """Whether it is zero."""
        return ~self.value if self.value.type == BIT else self.value.equals(0)

    def of(self, type_: Type) -> Value:
        """Its integer in the type `type_`."""
        is_extended = (self.value.type, type_) == (INT, LONG)
        return self.value.signed_to(LONG) if is_extended else self.value.to(type_)


def integer_results(
    code: Code, stores: Stores, leaves: Mapping[Leaf, Value | float], bounds: Mapping[Leaf, Bounds]
) -> tuple[dict[Leaf, Integer], int]:
    """Adds the operations that compute `stores` to `code`; returns their results, and the largest integer.

    Args:
        code: the loop over neurons.
        stores: the values to compute.
        leaves: the value of each leaf, or its number if all neurons share it.
        bounds: of the leaves that have a value.

    Raises:
        Unsupported: if an operation has no form in integers, a constant is no multiple of 2^-24, or an
            integer does not fit in 64 bits.
    """
    building = _Building(code, leaves, bounds)
    results = dict(zip(stores, building.run(stores.values()), strict=True))
    return results, max((max(-value.low, value.high) for value in building.results.values()), default=0)


class _Building(Analysis[Integer]):
    """Builds the operations of one loop body."""

    def __init__(
        self, code: Code, leaves: Mapping[Leaf, Value | float], bounds: Mapping[Leaf, Bounds]
    ) -> None:
        super().__init__()
        self.code, self.leaves, self.bounds = code, leaves, bounds

    def on_number(self, value: StepValue) -> Integer:
        """A number, which must be a multiple of 2^-24."""
        return self._constant(float(value.data))

    def leaf(self, value: StepValue) -> Integer:
        """The value of a leaf with its bounds, or the constant that stands for it."""
        leaf = self.leaves[value.leaf]
        return Integer(leaf, *self.bounds[value.leaf]) if isinstance(leaf, Value) else self._constant(leaf)

    def operation(self, value: StepValue, row: Operation, args: list[Integer]) -> Integer:
        """The result of an operation with its bounds."""
        if row.name == "floor":
            return self._floor(args[0])
        if row.name == "to_float":
            return args[0]
        if row.name == "to_bool":
            return Integer(args[0].truth, 0, 1)
        if row.name == "mul":
            return self._product(row, *args)
        if not row.boolean and (not row.integer or row.bounds is None):
            raise Unsupported(f"operation {row.name!r} has no form in integers")
        if row.name == "sub" and args[0].number == 1 and args[1].is_boolean:
            return Integer(args[1].opposite, 0, 1)
        exponent = max(arg.exponent for arg in args[-2:])
        args = [*args[:-2], *(self._scaled(arg, exponent) for arg in args[-2:])]
        return self._computed(row, args, exponent, self._leak_bounds(value, exponent))

    def _computed(
        self, row: Operation, args: list[Integer], exponent: int, tighter: Bounds | None = None
    ) -> Integer:
        """The result of the operation `row` on `args`, whose exponents are equal.

        `exponent` is that of the result e: its number is ``n * 2^-e`` for the integer n. `tighter` are
        bounds of the result, if closer ones than those of the operation are known.
        """
        function = _FUNCTIONS[row.name]
        if row.boolean:
            operands = [arg.truth if row.takes_booleans else arg.of(_widest(args)) for arg in args]
            return Integer(function(*operands), 0, 1)
        assert row.bounds is not None
        low, high = map(int, row.bounds(*((arg.low, arg.high) for arg in args)))
        conditions, numbers = (args[:1], args[1:]) if row.name == "where" else ([], args)
        type_ = LONG if LONG in (_widest(numbers), _type_of(low, high)) else INT
        result = function(*(arg.truth for arg in conditions), *(arg.of(type_) for arg in numbers))
        return self._named(result, *(tighter or (low, high)), exponent)

    def _product(self, row: Operation, one: Integer, other: Integer) -> Integer:
        """The product of two values; a selection if one of them is a boolean."""
        exponent = one.exponent + other.exponent
        for first, second in ((one, other), (other, one)):
            if first.is_boolean and first.number is None:
                if second.is_boolean:
                    return Integer(first.truth & second.truth, 0, 1)
                low, high = min(0, second.low), max(0, second.high)
                return self._named(first.truth.select(second.of(second.type), 0), low, high, exponent)
            if first.low == first.high == 1:
                return replace(second, exponent=exponent)
        return self._computed(row, [one, other], exponent)

    def _floor(self, one: Integer) -> Integer:
        """The floor of the fixed-point number `one`, an integer divided by ``2^exponent``, by a shift.

        C99 does not define shifts of negative integers, so these shift the complement.
        """
        if one.exponent <= 0:
            return one
        x, places = one.of(one.type), one.exponent
        shifted = x >> places if one.low >= 0 else (x < 0).select(~(~x >> places), x >> places)
        return self._named(shifted, one.low >> places, one.high >> places)

    def _scaled(self, one: Integer, exponent: int) -> Integer:
        """The same number with a larger exponent."""
        factor = 1 << (exponent - one.exponent)
        if factor == 1:
            return one
        low, high = one.low * factor, one.high * factor
        if low == high:
            return self._integer_constant(low, exponent)
        return Integer(one.of(_type_of(low, high)) * factor, low, high, exponent)

    def _leak_bounds(self, value: StepValue, exponent: int) -> Bounds | None:
        """Bounds of ``v - floor(v c + h)`` for c from 0 to 1, which increases with v; else None."""
        if value.op != "sub" or value.args[1].op != "floor" or exponent:
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

    def _named(self, value: Value, low: int, high: int, exponent: int = 0) -> Integer:
        """The integer `value` with its bounds, as a constant of the loop body."""
        if low <= -(2**63) or high >= 2**63:
            raise Unsupported("a number of the step does not fit in 64 bits")
        if low == high:
            return self._integer_constant(low, exponent)
        return Integer(value.to(_type_of(low, high)).named("a"), low, high, exponent)

    def _constant(self, number: float) -> Integer:
        """The constant `number`, a multiple of 2^-24."""
        exact = Fraction(number)
        exponent = exact.denominator.bit_length() - 1
        if exponent > FINEST:
            raise Unsupported(f"{number:g} is no integer, nor a multiple of 2^-{FINEST}")
        return self._integer_constant(exact.numerator, exponent)

    def _integer_constant(self, number: int, exponent: int) -> Integer:
        """The constant `number` times ``2^-exponent``."""
        return Integer(self.code.constant(number, _type_of(number, number)), number, number, exponent)


def _type_of(low: int, high: int) -> Type:
    """The type of integers from `low` to `high`."""
    return LONG if low <= -(2**31) or high >= 2**31 else INT


def _widest(integers: list[Integer]) -> Type:
    """The type that holds each of the `integers`."""
    return LONG if any(one.type == LONG for one in integers) else INT
