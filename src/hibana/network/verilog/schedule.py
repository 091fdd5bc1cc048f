"""Turns the statements of a C program into the states of a state machine with one memory port per array.

The C code of a network uses few constructs: loops, conditions, integer expressions, arrays and constants.
Each array becomes a memory with one read port, whose result arrives one cycle later, and one write port. A
block of statements without control flow is scheduled cycle by cycle: a statement runs as soon as its operands
are ready, and the ports of its arrays are free. The loop of a statement such as ``sum[o] += row[o]`` handles
one number per cycle.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pycparser import c_ast

from hibana.compiler.graph.ops import Unsupported
from hibana.network.verilog.expressions import Expression, Wires

__all__ = ["Array", "Machine", "State"]


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
    reads: list[tuple[int, str]] = field(default_factory=list)
    """The states that read, and the address in each."""
    writes: list[tuple[int, str, str, str]] = field(default_factory=list)
    """The states that write, each with the address, the number, and the condition."""

    @property
    def address_bits(self) -> int:
        """Bits of an address."""
        return max(1, (self.count - 1).bit_length())


@dataclass
class State:
    """A state of the machine."""

    assignments: list[str] = field(default_factory=list)
    """Assignments to registers at the end of the cycle."""
    condition: str = ""
    """The condition for `next`; empty if the next state does not depend on a condition."""
    next: int = -1
    otherwise: int = -1


@dataclass
class _Pointer:
    """A pointer of C: an array and an index."""

    array: Array
    offset: Expression


class Machine:
    """The states, registers and memories of a program; each method ``run`` appends states."""

    def __init__(self, arrays: Iterable[Array], scalars: Iterable[str]) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.wires = Wires()
        self.registers = [f"r_{name}" for name in scalars]
        self.states: list[State] = []
        self._captured: set[str] = set()
        """Registers that one block assigns and reads."""
        self._names: dict[str, Expression | _Pointer] = {
            name: Expression(f"r_{name}", 32, registers=frozenset([f"r_{name}"])) for name in scalars
        }
        self._straight = False
        """Whether the current statements have no control flow."""
        self._loaded: list[str] = []
        """The arrays that the current statements read, once for each read."""
        self._from_memory = False
        """Whether reads take the memories' current results, because an earlier cycle set the addresses."""
        self._start_block()

    def run(self, statements: Iterable[c_ast.Node]) -> int:
        """Appends the states of `statements`, and returns the index of the first state."""
        self._flush()
        first = len(self.states)
        with self._scope():
            self._run(list(statements))
        self._flush()
        self.states.append(State())
        return first

    # Blocks without control flow

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
        self._writes: list[tuple[int, Array, str, str]] = []

    def _at(self, cycle: int) -> State:
        """The state of a cycle of the block."""
        while len(self._block) <= cycle:
            self._block.append(State())
        return self._block[cycle]

    def _flush(self, condition: Expression | None = None) -> State | None:
        """Appends the block's states; the last one has the `condition`, and is returned."""
        if condition is not None:
            self._at(self._use(condition, max(len(self._block) - 1, 0)))
        first = len(self.states)
        for array in self.arrays.values():
            array.reads += [(first + cycle, address) for cycle, a, address in self._reads if a is array]
            array.writes += [
                (first + cycle, address, number, "1'b1")
                for cycle, a, address, number in self._writes
                if a is array
            ]
        for offset, state in enumerate(self._block):
            state.next = first + offset + 1
            self.states.append(state)
        last = self._block[-1] if self._block else None
        if condition is not None and last is not None:
            last.condition = condition.text
        self._start_block()
        return last

    def _cycle(self, expression: Expression) -> int:
        """The first cycle with the value of `expression`."""
        ready = max((self._ready.get(name, 0) for name in expression.registers), default=0)
        reads = max((self._read[name] + 1 for name in expression.loads), default=0)
        return max(ready, reads)

    def _use(self, expression: Expression, earliest: int = 0) -> int:
        """The first cycle from `earliest` on with the value of `expression`; records the use."""
        cycle = max(earliest, self._cycle(expression))
        for name in (*expression.registers, *expression.loads):
            self._used[name] = max(self._used.get(name, 0), cycle)
        return cycle

    def _load(self, array: Array, index: Expression) -> Expression:
        """The number of `array` at `index`, read in the first cycle that has the index and a free read port.

        The number appears at the memory's output one cycle later, and stays until the next read of the array.
        """
        earliest = self._written.get(array.name, -1) + 1
        if array.name in self._read:
            earliest = max(earliest, self._read[array.name] + 1, self._used.get(array.name, 0))
        cycle = self._use(index, earliest)
        self._at(cycle)
        self._read[array.name] = cycle
        self._reads.append((cycle, array, index.low_bits(array.address_bits, self.wires)))
        loaded = Expression(f"q_{array.name}", 32, loads=frozenset([array.name]))
        if self._captures(array):
            return self._capture(loaded)
        return loaded

    def _capture(self, expression: Expression) -> Expression:
        """A new register with the value of `expression`."""
        register = self._register(max(32, expression.bits))
        self._captured.add(register)
        return self._assign(register, expression)

    def _register(self, bits: int) -> str:
        """A new register of 32 or 64 bits."""
        name = f"r{len(self.registers)}" + "_64" * (bits == 64)
        self.registers.append(name)
        return name

    def _assign(self, register: str, expression: Expression) -> Expression:
        """Assigns `expression` to `register` as early as possible, and returns the register's value."""
        bits = 64 if register.endswith("_64") else 32
        earliest = max(self._used.get(register, 0), self._ready.get(register, 0))
        value = expression.of_bits(bits, self.wires)
        cycle = self._use(value, earliest)
        self._at(cycle).assignments.append(f"{register} <= {value.text};")
        self._ready[register] = cycle + 1
        return Expression(register, bits, registers=frozenset([register]))

    def _store(self, array: Array, index: Expression, value: Expression) -> None:
        """Writes `value` to `array` as early as possible."""
        if array.values is not None:
            raise Unsupported(f"array {array.name} is constant")
        earliest = max(self._written.get(array.name, -1) + 1, self._read.get(array.name, -1) + 1)
        cycle = max(self._use(index, earliest), self._use(value, earliest))
        for part in (index, value):
            self._use(part, cycle)
        self._at(cycle)
        self._written[array.name] = cycle
        address, number = (
            index.low_bits(array.address_bits, self.wires),
            value.low_bits(array.bits, self.wires),
        )
        self._writes.append((cycle, array, address, number))

    # Statements

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """A block of C: its names end with it."""
        outer = self._names
        self._names = dict(outer)
        yield
        self._names = outer

    def _run(self, statements: list[c_ast.Node]) -> None:
        """Schedules statements in order."""
        outer = self._straight, self._loaded
        self._straight = not any(isinstance(s, c_ast.For | c_ast.If | c_ast.Compound) for s in statements)
        self._loaded = [name for s in statements for name in self._loads_of(s)]
        for statement in statements:
            match statement:
                case c_ast.Decl():
                    self._declare(statement)
                case c_ast.Assignment():
                    self._assignment(statement)
                case c_ast.UnaryOp(op="p++", expr=c_ast.ID(name=name)):
                    self._assign_name(name, self._number(name).plus(1, self.wires))
                case c_ast.For():
                    self._for(statement)
                case c_ast.If():
                    self._if(statement)
                case c_ast.Compound():
                    with self._scope():
                        self._run(statement.block_items or [])
                case _:
                    raise Unsupported(f"no circuit for the C statement {type(statement).__name__}")
        self._straight, self._loaded = outer

    def _captures(self, array: Array) -> bool:
        """Whether a number that is read must be kept in a register: the array may be read again before."""
        return not self._straight or self._loaded.count(array.name) > 1

    def _loads_of(self, node: c_ast.Node) -> list[str]:
        """The names of the arrays that `node` reads, once for each read; without those of inner pointers."""
        names = list[str]()
        is_store = isinstance(node, c_ast.Assignment) and isinstance(node.lvalue, c_ast.ArrayRef)
        for _, child in node.children():
            if is_store and child is node.lvalue and node.op == "=":
                names += self._loads_of(child.subscript)
            else:
                names += self._loads_of(child)
        if isinstance(node, c_ast.ArrayRef):
            name = _name_of(node.name)
            pointer = self._names.get(name)
            names.append(pointer.array.name if isinstance(pointer, _Pointer) else name)
        return names

    def _declare(self, node: c_ast.Decl) -> None:
        """A constant or variable of C: a pointer, a register, or only a name for an expression."""
        if isinstance(node.type, c_ast.PtrDecl):
            pointer = self._pointer(node.init)
            offset = self._capture(pointer.offset) if not pointer.offset.is_constant else pointer.offset
            self._names[node.name] = _Pointer(pointer.array, offset)
            return
        kind = node.type.type.names[0]
        bits = 64 if kind == "int64_t" else 32
        value = self._value(node.init).of_kind(kind, self.wires)
        if "const" not in node.quals:
            self._names[node.name] = self._assign(self._register(bits), value)
        elif value.is_constant or value.text in self._captured or (self._straight and not value.is_slow):
            self._names[node.name] = value
        else:
            self._names[node.name] = self._capture(value)

    def _assignment(self, node: c_ast.Assignment) -> None:
        """An assignment to a number of an array, or to a variable."""
        value = self._value(node.rvalue)
        if isinstance(node.lvalue, c_ast.ArrayRef):
            place = self._place(node.lvalue)
            if node.op != "=":
                value = self.wires.binary(node.op[0], self._load(place.array, place.offset), value)
            self._store(place.array, place.offset, value)
            return
        name = _name_of(node.lvalue)
        if node.op != "=":
            value = self.wires.binary(node.op[0], self._number(name), value)
        self._assign_name(name, value)

    def _assign_name(self, name: str, value: Expression) -> None:
        """Assigns `value` to the variable `name`."""
        self._assign(self._number(name).text, value)

    def _number(self, name: str) -> Expression:
        """The value of the variable or constant `name`."""
        value = self._names[name]
        assert isinstance(value, Expression), name
        return value

    def _if(self, node: c_ast.If) -> None:
        """A condition around statements."""
        condition = self._value(node.cond).truth(self.wires)
        branch = self._flush(condition)
        assert branch is not None
        with self._scope():
            self._run(_items(node.iftrue))
        self._flush()
        if node.iffalse is not None:
            self.states.append(last := State())
        branch.otherwise = len(self.states)
        if node.iffalse is not None:
            with self._scope():
                self._run(_items(node.iffalse))
            self._flush()
            last.next = len(self.states)

    def _for(self, node: c_ast.For) -> None:
        """A loop over an index."""
        (declaration,) = node.init.decls
        start, end = self._value(declaration.init), self._value(node.cond.right)
        step = 1 if isinstance(node.next, c_ast.UnaryOp) else int(node.next.rvalue.value)
        if start.is_constant and end.is_constant and int(start.text) >= int(end.text):
            return
        if not end.is_constant:
            end = self._capture(end)
        with self._scope():
            index = self._assign(self._register(32), start)
            self._names[declaration.name] = index
            following = index.plus(step, self.wires)
            test = None
            if not (start.is_constant and end.is_constant):
                test = self._flush(self.wires.binary("<", index, end))
            else:
                self._flush()
            repeat = self.wires.binary("<", following, end)
            body = _items(node.stmt)
            last: State | None
            if self._is_pipelined(body):
                first, last = self._pipelined(body[0], declaration.name, index, following, repeat)
            else:
                first = len(self.states)
                self._run(body)
                cycle = self._use(repeat, max(len(self._block) - 1, 0))
                self._at(cycle).assignments.append(f"{index.text} <= {following.text};")
                last = self._flush()
                assert last is not None
                last.condition = repeat.text
            assert last is not None
            last.next, last.otherwise = first, len(self.states)
            if test is not None:
                test.otherwise = len(self.states)

    def _is_pipelined(self, body: list[c_ast.Node]) -> bool:
        """Whether a loop's body is one assignment to an array that reads each other array at most once.

        The number that the assignment replaces may also be read.
        """
        if len(body) != 1 or not isinstance(body[0], c_ast.Assignment):
            return False
        (statement,) = body
        if not isinstance(statement.lvalue, c_ast.ArrayRef):
            return False
        loads, target = self._loads_of(statement), self._place_name(statement.lvalue)
        inner = [load for ref in _references(statement) for load in self._loads_of(ref.subscript)]
        reads_target = target in loads
        return (
            not inner
            and len(set(loads)) == len(loads)
            and bool(loads)
            and (not reads_target or statement.op != "=")
            and self.arrays[target].values is None
        )

    def _pipelined(
        self, node: c_ast.Assignment, name: str, index: Expression, following: Expression, repeat: Expression
    ) -> tuple[int, State]:
        """A loop that reads the numbers of the next index while it writes those of the current one."""
        references = [ref for ref in _references(node) if ref is not node.lvalue or node.op != "="]
        for ref in references:
            place = self._place(ref)
            cycle = self._use(place.offset)
            self._at(cycle)
            self._reads.append(
                (cycle, place.array, place.offset.low_bits(place.array.address_bits, self.wires))
            )
        self._flush()
        first = len(self.states)
        self._names[name] = following
        ahead = [self._place(ref) for ref in references]
        self._names[name] = index
        self._at(0)
        for place in ahead:
            self._reads.append((0, place.array, place.offset.low_bits(place.array.address_bits, self.wires)))
        self._from_memory = True
        value, target = self._value(node.rvalue), self._place(node.lvalue)
        if node.op != "=":
            value = self.wires.binary(node.op[0], Expression(f"q_{target.array.name}", 32), value)
        self._from_memory = False
        address = target.offset.low_bits(target.array.address_bits, self.wires)
        self._writes.append((0, target.array, address, value.low_bits(target.array.bits, self.wires)))
        self._at(0).assignments.append(f"{index.text} <= {following.text};")
        last = self._flush(repeat)
        assert last is not None
        return first, last

    # Expressions

    def _value(self, node: c_ast.Node) -> Expression:
        """The value of an expression of C."""
        match node:
            case c_ast.Constant():
                return self.wires.constant(int(node.value))
            case c_ast.ID(name="INT32_MIN"):
                return self.wires.constant(-(2**31))
            case c_ast.ID() | c_ast.StructRef():
                return self._number(_name_of(node))
            case c_ast.ArrayRef():
                place = self._place(node)
                if self._from_memory:
                    return Expression(f"q_{place.array.name}", 32)
                return self._load(place.array, place.offset)
            case c_ast.Cast():
                return self._value(node.expr).of_kind(node.to_type.type.type.names[0], self.wires)
            case c_ast.UnaryOp():
                return self.wires.unary(node.op, self._value(node.expr))
            case c_ast.BinaryOp():
                return self.wires.binary(node.op, self._value(node.left), self._value(node.right))
            case c_ast.TernaryOp():
                condition = self._value(node.cond).truth(self.wires)
                return self.wires.choice(condition, self._value(node.iftrue), self._value(node.iffalse))
        raise Unsupported(f"no circuit for the C expression {type(node).__name__}")

    def _pointer(self, node: c_ast.Node) -> _Pointer:
        """A pointer expression: an array, or a pointer plus an index."""
        if isinstance(node, c_ast.BinaryOp):
            pointer = self._pointer(node.left)
            return _Pointer(pointer.array, self.wires.binary("+", pointer.offset, self._value(node.right)))
        name = _name_of(node)
        named = self._names.get(name)
        if isinstance(named, _Pointer):
            return named
        return _Pointer(self.arrays[name], self.wires.constant(0))

    def _place(self, node: c_ast.ArrayRef) -> _Pointer:
        """The array and the index of a number of an array."""
        pointer = self._pointer(node.name)
        return _Pointer(pointer.array, self.wires.binary("+", pointer.offset, self._value(node.subscript)))

    def _place_name(self, node: c_ast.ArrayRef) -> str:
        """The name of the array that `node` refers to."""
        return self._pointer(node.name).array.name


def _references(node: c_ast.Node) -> list[c_ast.ArrayRef]:
    """All numbers of arrays in `node`."""
    inner = [ref for _, child in node.children() for ref in _references(child)]
    return [*inner, node] if isinstance(node, c_ast.ArrayRef) else inner


def _items(node: c_ast.Node) -> list[c_ast.Node]:
    """The statements of a block, or the single statement."""
    return list(node.block_items or []) if isinstance(node, c_ast.Compound) else [node]


def _name_of(node: Any) -> str:
    """The name of a variable or an array; a field of the struct without the names of struct and union."""
    return str(node.field.name if isinstance(node, c_ast.StructRef) else node.name)
