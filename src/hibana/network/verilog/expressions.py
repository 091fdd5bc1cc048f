"""Integer expressions of C as wires of Verilog, each with the width that C gives it."""

from dataclasses import dataclass
from math import gcd

from hibana.compiler.graph.ops import Unsupported

__all__ = ["Expression", "Wires"]

INDEX_BITS = 20
"""Bits of an index that is divided by a number that is no power of two."""
_SLOW = ("*", "/", "%")
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_KINDS = {
    **{"int8_t": (8, True), "uint8_t": (8, False), "int16_t": (16, True), "uint16_t": (16, False)},
    **dict.fromkeys(("int", "int32_t", "uint32_t", "size_t"), (32, True)),
    "int64_t": (64, True),
}
"""Bits and sign of C's integers; 32-bit indices never exceed the signed range."""


@dataclass(frozen=True)
class Expression:
    """A value: a constant, a register, the result of a memory, or a wire."""

    text: str
    bits: int
    """1 for a truth value, else 32 or 64; numbers are signed."""
    is_constant: bool = False
    is_slow: bool = False
    """Whether it contains a product since the last register."""
    registers: frozenset[str] = frozenset()
    """The registers on which it depends."""
    loads: frozenset[str] = frozenset()
    """The arrays on whose last read number it depends."""
    divisor: int = 1
    """A number that divides the value; 0 for the constant 0."""

    def of_bits(self, bits: int, wires: "Wires") -> "Expression":
        """The same value with 32 or 64 bits."""
        if self.bits == bits:
            return self
        if self.is_constant:
            return wires.constant(int(self.text), bits)
        if self.bits == 1:
            return wires.add(f"{{{bits - 1}'d0, {self.text}}}", bits, self)
        if bits == 32:
            return wires.add(f"{self.text}[31:0]", 32, self)
        return wires.add(f"{{{{32{{{self.text}[31]}}}}, {self.text}}}", 64, self)

    def of_kind(self, kind: str, wires: "Wires") -> "Expression":
        """The value converted to the C type `kind`, then promoted to 32 or 64 bits."""
        bits, signed = _KINDS[kind]
        if self.is_constant or bits >= 32:
            return self.of_bits(max(bits, 32), wires)
        number = self.of_bits(32, wires)
        sign = f"{{{32 - bits}{{{number.text}[{bits - 1}]}}}}" if signed else f"{32 - bits}'d0"
        return wires.add(f"{{{sign}, {number.text}[{bits - 1}:0]}}", 32, self)

    def truth(self, wires: "Wires") -> "Expression":
        """Whether the value is not zero."""
        if self.bits == 1:
            return self
        return wires.add(f"{self.text} != {self.bits}'sd0", 1, self)

    def low_bits(self, bits: int, wires: "Wires") -> str:
        """The lowest `bits` bits, as an unsigned number of Verilog."""
        if self.is_constant:
            return f"{bits}'d{int(self.text) & ((1 << bits) - 1)}"
        number = self.of_bits(32, wires) if self.bits == 1 else self
        if number.bits == bits:
            return number.text
        return f"{number.text}[{bits - 1}:0]"

    def plus(self, number: int, wires: "Wires") -> "Expression":
        """The value plus a constant."""
        return wires.binary("+", self, wires.constant(number))


class Wires:
    """The wires of a module."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._by_text: dict[str, Expression] = {}

    def constant(self, number: int, bits: int = 32) -> Expression:
        """The constant `number`."""
        return Expression(str(number), bits, is_constant=True, divisor=abs(number))

    def add(
        self, text: str, bits: int, *parts: Expression, slow: bool = False, divisor: int = 1
    ) -> Expression:
        """A wire with the value `text`, which depends on `parts` and is a multiple of `divisor`."""
        key = f"{bits}:{text}"
        if key not in self._by_text:
            name = f"w{len(self._by_text)}"
            kind = "wire" if bits == 1 else f"wire signed [{bits - 1}:0]"
            self.lines.append(f"{kind} {name} = {text};")
            self._by_text[key] = Expression(
                name,
                bits,
                is_slow=slow or any(part.is_slow for part in parts),
                registers=frozenset().union(*(part.registers for part in parts)),
                loads=frozenset().union(*(part.loads for part in parts)),
                divisor=divisor,
            )
        return self._by_text[key]

    def unary(self, operator: str, x: Expression) -> Expression:
        """The result of ``!``, ``~``, ``-`` or ``+``."""
        if operator == "!":
            truth = x.truth(self)
            return self.add(f"!{truth.text}", 1, truth)
        if operator == "+":
            return x
        if x.is_constant:
            return self.constant(-int(x.text) if operator == "-" else ~int(x.text), x.bits)
        number = x.of_bits(max(32, x.bits), self)
        return self.add(f"{operator}{number.text}", number.bits, number)

    def binary(self, operator: str, left: Expression, right: Expression) -> Expression:
        """The result of an operator of C on two integers."""
        if operator in ("&&", "||"):
            one, other = left.truth(self), right.truth(self)
            return self.add(f"{one.text} {operator} {other.text}", 1, one, other)
        if left.is_constant and right.is_constant and operator in ("+", "-", "*", "/", "%", ">>", "<<"):
            return self._folded(operator, left, right)
        if operator in ("/", "%"):
            return self._divided(operator, left, right)
        bits = max(32, left.bits, right.bits if operator not in (">>", "<<") else 0)
        one = left.of_bits(bits, self)
        if operator in (">>", "<<"):
            if not right.is_constant:
                raise Unsupported("no circuit for a shift by a number that is not constant")
            return self.add(f"{one.text} {operator[0] * 3} {int(right.text)}", bits, one)
        other = right.of_bits(bits, self)
        if operator in ("+", "-") and other.text == "0":
            return one
        if operator == "+" and one.text == "0":
            return other
        if operator == "*" and "1" in (one.text, other.text):
            return one if other.text == "1" else other
        result = 1 if operator in _COMPARISONS else bits
        text = f"{_literal(one)} {operator} {_literal(other)}"
        is_slow = operator == "*" and not _is_power_of_two(one) and not _is_power_of_two(other)
        divisor = 1
        if operator in ("+", "-"):
            divisor = gcd(one.divisor, other.divisor)
        elif operator == "*":
            divisor = one.divisor * other.divisor
        return self.add(text, result, one, other, slow=is_slow, divisor=divisor)

    def choice(self, condition: Expression, yes: Expression, no: Expression) -> Expression:
        """``condition ? yes : no``."""
        bits = max(32, yes.bits, no.bits)
        one, other = yes.of_bits(bits, self), no.of_bits(bits, self)
        return self.add(
            f"{condition.text} ? {_literal(one)} : {_literal(other)}", bits, condition, one, other
        )

    def _folded(self, operator: str, left: Expression, right: Expression) -> Expression:
        """The result of an operator on two constants."""
        x, y = int(left.text), int(right.text)
        results = {"+": x + y, "-": x - y, "*": x * y, ">>": x >> y, "<<": x << y}
        if operator in results:
            return self.constant(results[operator], max(left.bits, right.bits))
        return self.constant(x // y if operator == "/" else x % y)

    def _divided(self, operator: str, left: Expression, right: Expression) -> Expression:
        """Quotient or remainder of an index, which is not negative, and a constant."""
        if not right.is_constant or left.bits == 64:
            raise Unsupported("no circuit for a division by a number that is not constant")
        divisor, number = int(right.text), left.of_bits(32, self)
        if divisor & (divisor - 1) == 0:
            places = divisor.bit_length() - 1
            if operator == "/":
                return number if not places else self.add(f"{number.text} >>> {places}", 32, number)
            mask = self.constant(divisor - 1)
            return self.add(f"{number.text} & {_literal(mask)}", 32, number)
        places = INDEX_BITS + divisor.bit_length()
        factor = -(-(1 << places) // divisor)
        wide = self.add(f"{{44'd0, {number.text}[{INDEX_BITS - 1}:0]}}", 64, number)
        product = self.add(f"{wide.text} * 64'sd{factor}", 64, wide, slow=True)
        quotient = self.add(f"{product.text} >>> {places}", 64, product).of_bits(32, self)
        if operator == "/":
            return quotient
        return self.binary("-", number, self.binary("*", quotient, right))


def _literal(expression: Expression) -> str:
    """The text of an expression, with the width of a constant."""
    if not expression.is_constant:
        return expression.text
    number = int(expression.text)
    sign = "-" if number < 0 else ""
    return f"{sign}{expression.bits}'sd{abs(number)}"


def _is_power_of_two(expression: Expression) -> bool:
    """Whether a product with `expression` is a shift."""
    return expression.is_constant and int(expression.text) > 0 and int(expression.text).bit_count() == 1
