"""The states of a circuit: statements without control flow, scheduled cycle by cycle.

Each array is a memory with one read port, whose result arrives one cycle later, and one write port. A
statement runs as soon as its operands are ready, and the ports of its arrays are free.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hibana.compiler.graph.ops import Unsupported
from hibana.network.verilog.expressions import Expression, Wires

__all__ = ["Array", "Schedule", "State"]


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
    reads: list[tuple[int, str, str]] = field(default_factory=list)
    """The states that read, each with a condition, and the index of an element of the word."""
    writes: list[tuple[int, str, str, str]] = field(default_factory=list)
    """The states that write, each with a bit for each lane that it writes, the index, and the word."""

    @property
    def address_bits(self) -> int:
        """Bits of the index of an element."""
        return max(1, (self.count - 1).bit_length(), self.lane_bits + 1)

    @property
    def lane_bits(self) -> int:
        """The lowest bits of an index, which select the lane."""
        return self.lanes.bit_length() - 1

    def result(self, lane: int | None = None) -> Expression:
        """The element that was last read, or the element in `lane` of the same word."""
        suffix = "" if lane is None else f"_{lane}"
        return Expression(f"q_{self.name}{suffix}", 32, loads=frozenset([self.name]))


@dataclass
class State:
    """A state of the machine."""

    assignments: list[str] = field(default_factory=list)
    """Assignments to registers at the end of the cycle."""
    condition: str = ""
    """The condition for `next`; empty if the next state does not depend on a condition."""
    next: int = -1
    otherwise: int = -1


class Schedule:
    """The states, registers and memories of a circuit.

    A block is a sequence of cycles without jumps. Operations are placed in the current block until
    :meth:`flush` appends the block's cycles to the states.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.wires = Wires()
        self.registers: list[str] = []
        self.states: list[State] = []
        self._start_block()

    def _start_block(self) -> None:
        """Starts a block: all registers are ready, and all ports are free, in its cycle 0."""
        self._block: list[State] = []
        self._ready: dict[str, int] = {}
        """First cycle with the new value of a register."""
        self._used: dict[str, int] = {}
        """Last cycle that uses a register, or the number that was last read from an array."""
        self._read: dict[str, int] = {}
        """Last cycle that reads an array."""
        self._written: dict[str, int] = {}
        """Last cycle that writes an array."""
        self._reads: list[tuple[int, Array, str]] = []
        self._writes: list[tuple[int, Array, str, str, str]] = []

    @property
    def last_cycle(self) -> int:
        """The last cycle of the block."""
        return max(len(self._block) - 1, 0)

    def state(self, cycle: int) -> State:
        """The state of a cycle of the block."""
        while len(self._block) <= cycle:
            self._block.append(State())
        return self._block[cycle]

    def flush(self, condition: Expression | None = None) -> State | None:
        """Appends the block's states; the last one has the `condition`, and is returned."""
        if condition is not None:
            self.state(self.use(condition, self.last_cycle))
        first = len(self.states)
        for cycle, array, address in self._reads:
            array.reads.append((first + cycle, "1'b1", address))
        for cycle, array, address, word, lanes in self._writes:
            array.writes.append((first + cycle, lanes, address, word))
        for offset, state in enumerate(self._block):
            state.next = first + offset + 1
            self.states.append(state)
        last = self._block[-1] if self._block else None
        if condition is not None and last is not None:
            last.condition = condition.text
        self._start_block()
        return last

    def use(self, expression: Expression, earliest: int = 0) -> int:
        """The first cycle from `earliest` on with the value of `expression`; records the use."""
        ready = [self._ready.get(name, 0) for name in expression.registers]
        reads = [self._read[name] + 1 for name in expression.loads]
        cycle = max(earliest, *ready, *reads, 0)
        for name in (*expression.registers, *expression.loads):
            self._used[name] = max(self._used.get(name, 0), cycle)
        return cycle

    # Memories

    def load(self, array: Array, index: Expression) -> Expression:
        """The element of `array` at `index`, read in the first cycle that has the index and a free read port.

        The element appears at the memory's output one cycle later, and stays until the array's next read.
        """
        earliest = self._written.get(array.name, -1) + 1
        if array.name in self._read:
            earliest = max(earliest, self._read[array.name] + 1, self._used.get(array.name, 0))
        self.read(self.use(index, earliest), array, index)
        return array.result()

    def read(self, cycle: int, array: Array, index: Expression) -> None:
        """Places a read of the element at `index` of an array in a cycle of the block."""
        self.state(cycle)
        self._read[array.name] = cycle
        self._reads.append((cycle, array, index.low_bits(array.address_bits, self.wires)))

    def store(self, array: Array, index: Expression, value: Expression) -> None:
        """Writes `value` to `array` as early as possible."""
        earliest = max(self._written.get(array.name, -1) + 1, self._read.get(array.name, -1) + 1)
        cycle = max(self.use(index, earliest), self.use(value, earliest))
        for part in (index, value):
            self.use(part, cycle)
        self.write(cycle, array, index, [value], ["1'b1"])

    def write(
        self, cycle: int, array: Array, index: Expression, values: list[Expression], enables: list[str]
    ) -> None:
        """Writes one element, or a word of elements from `index` on, of those whose bit of `enables` is 1."""
        if array.values is not None:
            raise Unsupported(f"array {array.name} is constant")
        numbers = [value.low_bits(array.bits, self.wires) for value in values]
        word, lanes = _joined(numbers), _joined(enables)
        if len(values) < array.lanes:
            word = f"{{{array.lanes}{{{word}}}}}"
            lanes = f"{array.lanes}'d1 << {index.low_bits(array.lane_bits, self.wires)}"
        self.state(cycle)
        self._written[array.name] = cycle
        self._writes.append((cycle, array, index.low_bits(array.address_bits, self.wires), word, lanes))

    # Registers

    def register(self, bits: int) -> str:
        """A new register of 32 or 64 bits."""
        name = f"r{len(self.registers)}" + "_64" * (bits == 64)
        self.registers.append(name)
        return name

    def assign(self, register: str, expression: Expression) -> Expression:
        """Assigns `expression` to `register` as early as possible, and returns the register's value."""
        bits = 64 if register.endswith("_64") else 32
        earliest = max(self._used.get(register, 0), self._ready.get(register, 0))
        value = expression.of_bits(bits, self.wires)
        cycle = self.use(value, earliest)
        self.state(cycle).assignments.append(f"{register} <= {value.text};")
        self._ready[register] = cycle + 1
        return Expression(register, bits, registers=frozenset([register]))


def _joined(numbers: list[str]) -> str:
    """Numbers of Verilog as one number, the first in the lowest bits."""
    return numbers[0] if len(numbers) == 1 else f"{{{', '.join(reversed(numbers))}}}"
