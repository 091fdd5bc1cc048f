"""The forward of a step in fixed-point arithmetic, with bounds that prove that nothing overflows.

Each value is an integer times a power of two, ``n * 2^-e``, between two bounds. Sums align exponents, a
product with a power of two changes the exponent alone, ``floor`` shifts: bit for bit what PyTorch computes in
floating point, where such numbers are exact.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from hibana.compiler.graph.analysis import evaluated
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.step import Value

Bounds = tuple[int, int]
"""The least and the largest that a number may be."""

FINEST = 24
"""Numbers are multiples of 2^-24 at the finest."""
_COMPARED = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "&&", "or": "||", "xor": "!="}


@dataclass(frozen=True)
class Said:
    """A value in C: an integer expression, its exponent and its bounds."""

    text: str
    exponent: int
    low: int
    high: int
    truth: bool = False
    """Whether it is 0 or 1."""

    @property
    def kind(self) -> str:
        """The type that holds it."""
        return "int32_t" if self.low > -(2**31) and self.high < 2**31 else "int64_t"


def in_whole_numbers(
    stores: Stores, standing: Callable[[str, Value], str | float], bounds: Mapping[str, Bounds]
) -> tuple[list[str], dict[str, Said], int]:
    """The body of a loop over neurons that computes `stores`, their values, and the largest integer in it.

    `standing` gives the name of a leaf, or its number if it is one for all neurons; `bounds` are of named
    leaves.

    Raises:
        Unsupported: if an operation is not available, a number is no multiple of a power of two, or something
            does not fit in 64 bits.
    """
    return _Writing(standing, bounds).written(stores)


class _Writing:
    """The writing of one body."""

    def __init__(self, standing: Callable[[str, Value], str | float], bounds: Mapping[str, Bounds]) -> None:
        self.standing, self.bounds = standing, bounds
        self.lines: list[str] = []
        self.said: dict[Value, Said] = {}

    def written(self, stores: Stores) -> tuple[list[str], dict[str, Said], int]:
        read = leaves(stores)
        for value in evaluated(stores.values(), ()):
            if value.op == "number":
                self.said[value] = _number(float(value.data))
            elif not value.args:
                self.said[value] = self._leaf(str(value.data), read[str(value.data)])
            else:
                self.said[value] = self._operation(value, [self.said[a] for a in value.args])
        largest = max((max(-s.low, s.high) for s in self.said.values()), default=0)
        return self.lines, {name: self.said[value] for name, value in stores.items()}, largest

    def _leaf(self, name: str, leaf: Value) -> Said:
        stands = self.standing(name, leaf)
        if not isinstance(stands, str):
            return _number(stands)
        low, high = self.bounds[name]
        return Said(stands, 0, low, high, low >= 0 and high <= 1)

    def _operation(self, value: Value, args: list[Said]) -> Said:
        op = value.op
        if op in _COMPARED:
            one, two = _aligned(*args)
            return Said(f"({one.text} {_COMPARED[op]} {two.text})", 0, 0, 1, True)
        if op in _LOGIC:
            return Said(f"({args[0].text} {_LOGIC[op]} {args[1].text})", 0, 0, 1, True)
        if op == "not":
            return Said(f"(!{args[0].text})", 0, 0, 1, True)
        if op == "to_bool":
            return Said(f"({args[0].text} != 0)", 0, 0, 1, True)
        if op == "to_float":
            return args[0]
        made = getattr(self, f"_{op}", None)
        if made is None:
            raise Unsupported(f"{op} is no operation of whole numbers")
        said: Said = made(*args)
        if (left := self._left_of_a_leak(value, args[0])) is not None:
            said = Said(said.text, said.exponent, *left)
        return self._named(said)

    def _left_of_a_leak(self, value: Value, whole: Said) -> Bounds | None:
        """The bounds of ``v - floor(v c + h)``, c from 0 to 1, which increases with v; else None."""
        if value.op != "sub" or value.args[1].op != "floor" or whole.exponent:
            return None
        (inner,) = value.args[1].args
        product, added = inner.args if inner.op == "add" else (inner, None)
        if product.op != "mul" or value.args[0] not in product.args:
            return None
        of = [self.said[a] for a in (*product.args, *([added] if added else [])) if a is not value.args[0]]
        if not of or any(said.low != said.high for said in of):
            return None
        factor, half = [Fraction(said.low, 2**said.exponent) for said in of] + [Fraction(0)] * (2 - len(of))
        if not 0 <= factor <= 1:
            return None
        low, high = (end - math.floor(end * factor + half) for end in (whole.low, whole.high))
        return low, high

    def _named(self, said: Said) -> Said:
        """`said` as a variable, unless it is a truth value or a name already."""
        if said.low <= -(2**63) or said.high >= 2**63:
            raise Unsupported("a number of the step does not fit in 64 bits")
        if said.truth or said.text.isidentifier() or said.text.lstrip("(-").rstrip(")").isdecimal():
            return said
        name = f"a{len(self.lines)}"
        self.lines.append(f"const {said.kind} {name} = {said.text};")
        return Said(name, said.exponent, said.low, said.high)

    def _add(self, one: Said, two: Said) -> Said:
        one, two = _aligned(one, two)
        low, high = one.low + two.low, one.high + two.high
        return Said(_wide(one, "+", two, low, high), one.exponent, low, high)

    def _sub(self, one: Said, two: Said) -> Said:
        one, two = _aligned(one, two)
        low, high = one.low - two.high, one.high - two.low
        if two.truth and (one.low, one.high) == (1, 1):
            return Said(f"(!{two.text})", 0, 0, 1, True)
        return Said(_wide(one, "-", two, low, high), one.exponent, low, high)

    def _mul(self, one: Said, two: Said) -> Said:
        for truth, other in ((one, two), (two, one)):
            if truth.truth:
                chosen = f"({truth.text} ? {other.text} : 0)"
                low, high = min(0, other.low), max(0, other.high)
                return Said(chosen, other.exponent, low, high, other.truth)
        exponent = one.exponent + two.exponent
        for factor, other in ((one, two), (two, one)):
            if factor.low == factor.high == 1:
                return Said(other.text, exponent, other.low, other.high)
        ends = [a * b for a in (one.low, one.high) for b in (two.low, two.high)]
        return Said(_wide(one, "*", two, min(ends), max(ends)), exponent, min(ends), max(ends))

    def _div(self, one: Said, two: Said) -> Said:
        if two.low != two.high or two.low == 0:
            raise Unsupported("a quotient of whole numbers that is none")
        return self._mul(one, _number(float(Fraction(2**two.exponent, two.low))))

    def _neg(self, one: Said) -> Said:
        return Said(f"(-{one.text})", one.exponent, -one.high, -one.low)

    def _abs(self, one: Said) -> Said:
        low = 0 if one.low <= 0 <= one.high else min(abs(one.low), abs(one.high))
        high = max(abs(one.low), abs(one.high))
        return Said(f"({one.text} < 0 ? -{one.text} : {one.text})", one.exponent, low, high)

    def _maximum(self, one: Said, two: Said, order: str = ">", pick: Callable[..., int] = max) -> Said:
        one, two = _aligned(one, two)
        text = f"({one.text} {order} {two.text} ? {one.text} : {two.text})"
        return Said(text, one.exponent, pick(one.low, two.low), pick(one.high, two.high))

    def _minimum(self, one: Said, two: Said) -> Said:
        return self._maximum(one, two, "<", min)

    def _where(self, condition: Said, one: Said, two: Said) -> Said:
        one, two = _aligned(one, two)
        text = f"({condition.text} ? {one.text} : {two.text})"
        low, high = min(one.low, two.low), max(one.high, two.high)
        return Said(text, one.exponent, low, high, one.truth and two.truth)

    def _floor(self, one: Said) -> Said:
        if one.exponent <= 0:
            return one
        named, by = self._named(one).text, one.exponent
        shifted = f"({named} >> {by})"
        if one.low < 0:  # whose shift C99 leaves to the compiler; its complement is not negative
            shifted = f"({named} < 0 ? ~(~{named} >> {by}) : {named} >> {by})"
        return Said(shifted, 0, one.low >> by, one.high >> by)


def _number(number: float) -> Said:
    """A number as an integer and an exponent."""
    exact = Fraction(number)
    exponent = exact.denominator.bit_length() - 1
    if exponent > FINEST:
        raise Unsupported(f"{number:g} is no whole number, nor a multiple of 2^-{FINEST}")
    whole = exact.numerator
    text = f"{whole}" if whole >= 0 else f"({whole})"
    return Said(text, exponent, whole, whole, exponent == 0 and whole in (0, 1))


def _aligned(one: Said, two: Said) -> tuple[Said, Said]:
    """Both with the larger of their exponents."""
    exponent = max(one.exponent, two.exponent)
    return _raised(one, exponent), _raised(two, exponent)


def _raised(said: Said, exponent: int) -> Said:
    by = 1 << (exponent - said.exponent)
    if by == 1:
        return said
    low, high = said.low * by, said.high * by
    if said.low == said.high:
        return Said(f"{low}" if low >= 0 else f"({low})", exponent, low, high)
    wide = Said("", 0, low, high).kind == "int64_t"
    return Said(f"({'(int64_t)' if wide else ''}{said.text} * {by})", exponent, low, high)


def _wide(one: Said, sign: str, two: Said, low: int, high: int) -> str:
    """The C expression ``one sign two``, cast to ``int64_t`` if results from `low` to `high` need it."""
    wide = Said("", 0, low, high).kind == "int64_t"
    return f"({'(int64_t)' if wide else ''}{one.text} {sign} {two.text})"
