"""The hardware of a circuit: memories, registers, wires, and the value of each signal in each state.

Each array of the C program is a memory with one read port, whose result arrives one state later, and one
write port. Each expression is a wire of 64 bits. The bounds of an integer network prove that no number of
the C program overflows its type, so casts change no number, and more bits give the same numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

from hibana.compiler.graph.ops import Unsupported

__all__ = ["INDEX_BITS", "Array", "Circuit", "Expression"]

INDEX_BITS = 20
"""Bits of an index that is divided by a number."""


@dataclass(frozen=True)
class Expression:
    """A value: a constant, or a wire of 64 bits."""

    text: str
    registers: frozenset[str] = frozenset()
    """The registers on which it depends."""
    is_slow: bool = False
    """Whether it contains a product since the last register."""
    divisor: int = 1
    """A number that divides the value; 0 for the constant 0."""
    number: int | None = None
    """The value of a constant, else None."""

    @property
    def truth(self) -> str:
        """Verilog's expression of one bit, which is 1 if the value is not zero."""
        return f"|{self.text}"

    def low_bits(self, bits: int) -> str:
        """The lowest `bits` bits, as an unsigned number of Verilog."""
        if self.number is not None:
            return f"{bits}'d{self.number & ((1 << bits) - 1)}"
        return f"{self.text}[{bits - 1}:0]"


@dataclass
class Array:
    """A memory: an array of the C program."""

    name: str
    bits: int
    """Bits of an element."""
    count: int
    signed: bool
    values: tuple[int, ...] | None = None
    """The elements of a constant array; None if the program writes to it."""
    lanes: int = 1
    """Elements in a word of the memory, a power of two."""

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
        return Expression(f"q_{self.name}{suffix}", frozenset([f"q_{self.name}"]))


class Circuit:
    """A circuit with states in the order of the C program.

    What a state computes is ready in the next state. So a statement starts a state if the current one
    computes an operand of the statement, or uses the same memory.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.wires: dict[str, Expression] = {}
        """The wires, by the text of their value."""
        self.registers: dict[str, int] = {}
        """The bits of each register."""
        self.signals: dict[str, list[tuple[int, str]]] = {}
        """For each register and each signal of a port: the states that set it, and the value."""
        self.jumps: dict[int, tuple[str, int]] = {}
        """By state: a condition, and the state that follows if it is false."""
        self.state = -1
        """The index of the current, last state."""
        self._busy: set[str] = set()
        """Registers and arrays that the current state sets, reads or writes."""

    # States

    def start_state(self) -> int:
        """Starts a state after the current one, and returns its index."""
        self._busy = set()
        self.state += 1
        return self.state

    def wait(self, *values: Expression, resource: str = "") -> None:
        """Starts a state if the current one computes one of `values`, or uses the array or register."""
        if not self._busy.isdisjoint({resource}.union(*(value.registers for value in values))):
            self.start_state()

    def branch(self, condition: Expression, target: int = -1) -> int:
        """Jumps from the current state to `target` if `condition` is false; returns the current state."""
        self.wait(condition)
        self.jumps[self.state] = condition.truth, target
        return self.state

    def join(self, state: int) -> None:
        """Makes `state`, which jumps, jump to the code that follows."""
        if self._busy:
            self.start_state()
        self.jumps[state] = self.jumps[state][0], self.state

    def set_signals(self, resource: str, **values: str) -> None:
        """Sets signals of the register or array `resource` in the current state."""
        self._busy.add(resource)
        for signal, value in values.items():
            self.signals.setdefault(signal, []).append((self.state, value))

    # Memories and registers

    def read(self, array: Array, index: Expression) -> None:
        """Reads the element at `index` in the current state."""
        name, address = array.name, index.low_bits(array.address_bits)
        self.set_signals(name, **{f"r_{name}_e": "1'b1", f"r_{name}_a": address})

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
        self.set_signals(name, **{f"w_{name}_e": lanes, f"w_{name}_a": address, f"w_{name}_d": word})

    def register(self, name: str = "", bits: int = 32, *, signed: bool = True) -> Expression:
        """The value of a new register of `bits` bits."""
        name = name or f"r{len(self.registers)}"
        self.registers[name] = bits
        sign = f"{name}[{bits - 1}]" if signed else "1'b0"
        text = f"{{{{{64 - bits}{{{sign}}}}}, {name}}}" if bits < 64 else name
        return self.wire(text, Expression(name, frozenset([name])))

    def assign(self, register: Expression, value: Expression) -> None:
        """Sets a register to `value`."""
        (name,) = register.registers
        self.wait(value, resource=name)
        self.set_signals(name, **{name: value.low_bits(self.registers[name])})

    # Expressions

    def constant(self, number: int) -> Expression:
        """The constant `number`."""
        sign = "-" if number < 0 else ""
        return Expression(f"{sign}64'sd{abs(number)}", divisor=abs(number), number=number)

    def wire(self, text: str, *parts: Expression, divisor: int = 1, is_slow: bool = False) -> Expression:
        """A wire with the value `text`, which depends on `parts` and is a multiple of `divisor`."""
        if text not in self.wires:
            registers = frozenset[str]().union(*(part.registers for part in parts))
            is_slow = is_slow or any(part.is_slow for part in parts)
            self.wires[text] = Expression(f"w{len(self.wires)}", registers, is_slow, divisor)
        return self.wires[text]

    def truth(self, text: str, *parts: Expression) -> Expression:
        """The number 0 or 1 with the value of an expression of one bit."""
        return self.wire(f"{{63'd0, {text}}}", *parts)

    def unary(self, operator: str, x: Expression) -> Expression:
        """The result of C's operator ``!``, ``~`` or ``-``."""
        return self.truth(f"!({x.truth})", x) if operator == "!" else self.wire(f"{operator}{x.text}", x)

    def binary(self, operator: str, left: Expression, right: Expression) -> Expression:
        """The result of an operator of C on two integers."""
        if operator in ("&&", "||"):
            return self.truth(f"{left.truth} {operator} {right.truth}", left, right)
        if operator in ("<", "<=", ">", ">=", "==", "!="):
            return self.truth(f"{left.text} {operator} {right.text}", left, right)
        if operator in (">>", "<<", "/", "%"):
            if right.number is None:
                raise Unsupported(f"no circuit for the operator {operator} with an operand that varies")
            if operator in "/%":
                return self._divided(operator, left, right.number)
            return self.wire(f"{left.text} {operator[0] * 3} {right.number}", left)
        if operator == "+" and left.number == 0:
            return right
        text, divisor, is_slow = (
            f"{left.text} {operator} {right.text}",
            gcd(left.divisor, right.divisor),
            False,
        )
        if operator == "*":
            divisor = left.divisor * right.divisor
            is_slow = not any(part.number and abs(part.number).bit_count() == 1 for part in (left, right))
        return self.wire(text, left, right, divisor=divisor, is_slow=is_slow)

    def choice(self, condition: Expression, yes: Expression, no: Expression) -> Expression:
        """``condition ? yes : no``."""
        return self.wire(f"{condition.truth} ? {yes.text} : {no.text}", condition, yes, no)

    def _divided(self, operator: str, index: Expression, divisor: int) -> Expression:
        """Quotient or remainder of an index, which is not negative, by a product with the reciprocal."""
        places = INDEX_BITS + divisor.bit_length()
        factor = self.constant(-(-(1 << places) // divisor))
        number = self.wire(f"{{{64 - INDEX_BITS}'d0, {index.low_bits(INDEX_BITS)}}}", index)
        quotient = self.binary(">>", self.binary("*", number, factor), self.constant(places))
        if operator == "/":
            return quotient
        return self.binary("-", index, self.binary("*", quotient, self.constant(divisor)))
