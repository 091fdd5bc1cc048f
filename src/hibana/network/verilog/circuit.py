"""The hardware of a circuit: memories, registers, wires, and the value of each signal in each state.

Each array of the program is a memory with one read port and one write port. An element that is read arrives
in the next state, and an element that is written can be read two states later. Each expression is a wire with
as many bits as its values need. The bounds of an integer network prove that no number of the program
overflows its type, so casts change no number.
"""

import operator as op
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

from hibana.compiler.graph.ops import Unsupported

__all__ = ["Array", "Circuit", "Expression", "Signal", "signed_bits"]

_ARITHMETIC = {"add": ("+", op.add), "sub": ("-", op.sub), "mul": ("*", op.mul), "shr": (">>", op.rshift)}
"""Verilog's operator, and the function that gives bounds of the result from those of the operands."""
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGICAL = {"and": "&&", "or": "||"}
"""Verilog's operators on booleans."""


def signed_bits(low: int, high: int) -> int:
    """Bits of the numbers from `low` to `high`, with a bit for the sign."""
    return 1 + max((~number if number < 0 else number).bit_length() for number in (low, high))


@dataclass(frozen=True)
class Expression:
    """A value: a constant, or a wire with a signed number."""

    text: str
    low: int
    """The smallest and the largest value."""
    high: int
    registers: frozenset[str] = frozenset()
    """The registers on which it depends."""
    is_slow: bool = False
    """Whether it contains a product since the last register."""
    divisor: int = 1
    """A number that divides the value; 0 for the constant 0."""

    @property
    def number(self) -> int | None:
        """The value of a constant, else None."""
        return self.low if self.low == self.high else None

    @property
    def bits(self) -> int:
        """Bits of the wire."""
        return signed_bits(self.low, self.high)

    @property
    def truth(self) -> str:
        """Verilog's expression of one bit, which is 1 if the value is not zero."""
        return f"|{self.text}" if self.number is None else f"1'b{int(self.number != 0)}"

    def low_bits(self, bits: int) -> str:
        """The lowest `bits` bits, as an unsigned number of Verilog."""
        if self.number is not None:
            return f"{bits}'d{self.number % (1 << bits)}"
        if bits > self.bits:
            return f"{{{{{bits - self.bits}{{{self.text}[{self.bits - 1}]}}}}, {self.text}}}"
        return self.text if bits == self.bits else f"{self.text}[{bits - 1}:0]"

    def signed(self, bits: int) -> str:
        """The lowest `bits` bits, as a signed number of Verilog."""
        return f"$signed({self.low_bits(bits)})"


@dataclass
class Array:
    """A memory: an array of the program."""

    name: str
    low: int
    """The smallest element, or a smaller number; no element is larger than `high`, which exceeds `low`."""
    high: int
    count: int
    values: tuple[int, ...] | None = None
    """The elements of a constant array; None if the program writes to it."""
    lanes: int = 1
    """Elements in a word of the memory, a power of two."""

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return signed_bits(self.low, self.high) - (self.low >= 0)

    @property
    def lane_bits(self) -> int:
        """The lowest bits of an index, which select the lane."""
        return self.lanes.bit_length() - 1

    @property
    def address_bits(self) -> int:
        """Bits of the index of an element."""
        return max(1, (self.count - 1).bit_length(), self.lane_bits + 1)

    @property
    def words(self) -> int:
        """The number of words."""
        return -(-self.count // self.lanes)

    def result(self, lane: int | None = None) -> Expression:
        """The element that was last read, or the element in `lane` of the same word."""
        suffix = "" if lane is None else f"_{lane}"
        return Expression(f"q_{self.name}{suffix}", self.low, self.high, frozenset([f"q_{self.name}"]))


@dataclass
class Signal:
    """A register, or a signal of a port of a memory."""

    kind: Literal["register", "enable", "data"]
    """In states without an assignment a register keeps its value, an enable is 0, and data is any number."""
    at_once: bool
    """Whether a value is valid in the state that assigns it, and not from the next state on."""
    assignments: list[tuple[int, str, str]]
    """The state, the bits that are assigned, such as ``[7:0]`` or empty for all, and the value."""


class Circuit:
    """A circuit with states in the order of the program.

    What a state computes is ready in the next state. So a statement starts a state if the current one
    computes an operand of the statement, or uses the same memory.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.wires: dict[tuple[str, int, int], Expression] = {}
        """The wires, by the text and the bounds of their value."""
        self.registers: dict[str, int] = {}
        """The bits of each register."""
        self.numbered = 0
        """Number of registers without a name of their own; the statements after a block use its again."""
        self.signals: dict[str, Signal] = {}
        """The registers and the signals of ports, by name."""
        self.jumps: dict[int, tuple[str, int]] = {}
        """By state: a condition, and the state that follows if it is false."""
        self.state = -1
        """The index of the current, last state."""
        self.written: defaultdict[int, set[str]] = defaultdict(set)
        self.read_arrays: defaultdict[int, set[str]] = defaultdict(set)
        """By state: the arrays that it writes to, and those that it reads."""
        self.late: set[str] = set()
        """Arrays that the states before the current one wrote to, which it cannot read."""
        self._busy: set[str] = set()
        """Registers and arrays that the current state sets, reads or writes."""

    # States

    def start_state(self) -> int:
        """Starts a state after the current one, and returns its index."""
        self._busy, self.late = set(), set(self.written[self.state])
        self.state += 1
        return self.state

    def wait(self, *values: Expression, resource: str = "") -> None:
        """Starts a state if the current one computes one of `values`, or uses the array or register."""
        if not self._busy.isdisjoint({resource}.union(*(value.registers for value in values))):
            self.start_state()

    def branch(self, condition: Expression, target: int = -1) -> int:
        """Jumps from the current state to `target` if `condition` is false; returns the current state."""
        self.wait(condition)
        if target != self.state and not self.written[self.state].isdisjoint(self.read_arrays[target]):
            self.start_state()
        self.jumps[self.state] = condition.truth, target
        return self.state

    def join(self, state: int) -> None:
        """Makes `state`, which jumps, jump to the code that follows."""
        if self._busy:
            self.start_state()
        self.late |= self.written[state]
        self.jumps[state] = self.jumps[state][0], self.state

    def read_port(self, name: str, address: str) -> None:
        """Reads the array `name` in the current state."""
        self._busy.add(name)
        self._set(f"r_{name}_e", "1'b1", "enable", at_once=True)
        self._set(f"r_{name}_a", address, "data", at_once=True)

    def write_port(self, name: str, lanes: str, address: str, word: str) -> None:
        """Writes to the array `name` in the current state."""
        self._busy.add(name)
        self._set(f"w_{name}_e", lanes, "enable")
        self._set(f"w_{name}_a", address, "data")
        self._set(f"w_{name}_d", word, "data")

    def _set(
        self,
        name: str,
        value: str,
        kind: Literal["register", "enable", "data"],
        part: str = "",
        *,
        at_once: bool = False,
    ) -> None:
        """Assigns a value to a signal, or to a part of its bits, in the current state."""
        signal = self.signals.setdefault(name, Signal(kind, at_once, []))
        signal.assignments.append((self.state, part, value))

    # Memories and registers

    def read(self, array: Array, index: Expression) -> None:
        """Reads the element at `index` in the current state."""
        name, address = array.name, index.low_bits(array.address_bits)
        self.read_arrays[self.state].add(name)
        self.read_port(name, address)

    def store(
        self, array: Array, index: Expression, values: list[Expression], enables: Sequence[str] = ("1'b1",)
    ) -> None:
        """Writes one element, or a word of elements from `index` on, of those whose bit of `enables` is 1."""
        self.wait(index, *values, resource=array.name)
        word, lanes = (
            f"{{{', '.join(reversed(parts))}}}"
            for parts in ([v.low_bits(array.bits) for v in values], enables)
        )
        if len(values) < array.lanes:
            word = f"{{{array.lanes}{word}}}"
            lanes = f"{array.lanes}'d1 << {index.low_bits(array.lane_bits)}"
        name, address = array.name, index.low_bits(array.address_bits)
        self.written[self.state].add(name)
        self.write_port(name, lanes, address, word)

    def register(self, low: int, high: int, name: str = "") -> Expression:
        """A register for a number from `low` to `high`."""
        if not name:
            name = f"r{self.numbered}"
            self.numbered += 1
        high = max(high, low + 1)
        bits = signed_bits(low, high) - (low >= 0)
        self.registers[name] = max(bits, self.registers.get(name, 0))
        text = f"{{1'b0, {name}[{bits - 1}:0]}}" if low >= 0 else f"{name}[{bits - 1}:0]"
        return self._wire(text, low, high, Expression("", low, high, frozenset([name])))

    def assign(self, register: Expression, value: Expression) -> None:
        """Sets a register to `value`."""
        (name,) = register.registers
        bits = register.bits - (register.low >= 0)
        self.wait(value, resource=name)
        self._busy.add(name)
        self._set(name, value.low_bits(bits), "register", f"[{bits - 1}:0]")

    # Expressions

    def constant(self, number: int) -> Expression:
        """The constant `number`."""
        return Expression("", number, number, divisor=abs(number))

    def inverted(self, x: Expression, *, is_boolean: bool) -> Expression:
        """The opposite of a boolean, or an integer with all bits inverted."""
        return self._truth(f"!({x.truth})", x) if is_boolean else self._wire(f"~{x.text}", ~x.high, ~x.low, x)

    def binary(self, operation: str, left: Expression, right: Expression) -> Expression:
        """The result of an operation of :class:`hibana.runtime.loops.Let` on two integers or booleans."""
        if operation in _LOGICAL:
            return self._truth(f"{left.truth} {_LOGICAL[operation]} {right.truth}", left, right)
        if operation == "ne" and right.number == 0:
            return left if left.low >= 0 and left.high <= 1 else self._truth(left.truth, left)
        if operation == "eq" and right.number == 0:
            return self.inverted(left, is_boolean=True)
        if operation in _COMPARISONS:
            bits, operator = max(left.bits, right.bits), _COMPARISONS[operation]
            return self._truth(f"{left.signed(bits)} {operator} {right.signed(bits)}", left, right)
        if operation in ("shr", "div", "rem") and right.number is None:
            raise Unsupported(f"no circuit for the operation {operation} with an operand that varies")
        if operation in ("div", "rem"):
            return self._divided(operation, left, right.low)
        if operation == "add" and 0 in (left.number, right.number):
            return left if right.number == 0 else right
        operator, bound = _ARITHMETIC[operation]
        ends = [bound(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        low, high = min(ends), max(ends)
        if operation == "shr":
            text = f"{left.text}[{left.bits - 1}:{min(right.low, left.bits - 1)}]"
            return self._wire(text, low, high, left)
        bits, is_slow, divisor = signed_bits(low, high), False, gcd(left.divisor, right.divisor)
        if operation == "mul":
            divisor = left.divisor * right.divisor
            is_slow = not any(part.number and abs(part.number).bit_count() == 1 for part in (left, right))
        text = f"{left.signed(bits)} {operator} {right.signed(bits)}"
        return self._wire(text, low, high, left, right, divisor=divisor, is_slow=is_slow)

    def choice(self, condition: Expression, yes: Expression, no: Expression) -> Expression:
        """``condition ? yes : no``."""
        low, high = min(yes.low, no.low), max(yes.high, no.high)
        bits = signed_bits(low, high)
        text = f"{condition.truth} ? {yes.signed(bits)} : {no.signed(bits)}"
        return self._wire(text, low, high, condition, yes, no)

    def _truth(self, text: str, *parts: Expression) -> Expression:
        """The number 0 or 1 with the value of an expression of one bit."""
        return self._wire(f"{{1'b0, {text}}}", 0, 1, *parts)

    def _wire(
        self, text: str, low: int, high: int, *parts: Expression, divisor: int = 1, is_slow: bool = False
    ) -> Expression:
        """A wire with the value `text`, from `low` to `high`, which depends on `parts`; or a constant."""
        if low == high:
            return self.constant(low)
        if (text, low, high) not in self.wires:
            registers = frozenset[str]().union(*(part.registers for part in parts))
            is_slow = is_slow or any(part.is_slow for part in parts)
            wire = Expression(f"w{len(self.wires)}", low, high, registers, is_slow, divisor)
            self.wires[text, low, high] = wire
        return self.wires[text, low, high]

    def _divided(self, operation: str, index: Expression, divisor: int) -> Expression:
        """Quotient or remainder of an index, which is not negative, by a product with the reciprocal."""
        bits = index.bits - 1
        places = bits + divisor.bit_length()
        number = self._wire(f"{{1'b0, {index.low_bits(bits)}}}", 0, (1 << bits) - 1, index)
        product = self.binary("mul", number, self.constant(-(-(1 << places) // divisor)))
        quotient = self.binary("shr", product, self.constant(places))
        if operation == "div":
            return quotient
        bits = signed_bits(0, divisor - 1)
        multiple = self.binary("mul", quotient, self.constant(divisor))
        return self._wire(f"{index.signed(bits)} - {multiple.signed(bits)}", 0, divisor - 1, index, multiple)
