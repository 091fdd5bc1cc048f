"""Turns the statements of a C program into the states of a state machine.

The C code of a network uses few constructs: loops, conditions, integer expressions, arrays and constants.
The loop of a statement such as ``sum[o] += row[o]`` handles one element per cycle, or one word of several
elements if each array of the statement has words of as many lanes, and the loop starts with a word.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from pycparser import c_ast

from hibana.compiler.graph.ops import Unsupported
from hibana.network.verilog.expressions import Expression
from hibana.network.verilog.schedule import Array, Schedule, State

__all__ = ["Machine"]


@dataclass
class _Pointer:
    """A pointer of C: an array and an index."""

    array: Array
    offset: Expression


@dataclass
class _Loop:
    """The index of a loop of C, and its registers."""

    name: str
    start: Expression
    end: Expression
    index: Expression
    """The register of the index."""


class Machine:
    """The state machine of a C program; each call of :meth:`run` appends states."""

    def __init__(self, arrays: Iterable[Array], scalars: Iterable[str]) -> None:
        self.schedule = Schedule(arrays)
        self.wires = self.schedule.wires
        self.lanes: dict[str, int] = {}
        """Lanes of the arrays that loops read or write in words of several elements."""
        self._captured: set[str] = set()
        """Registers that one block assigns and reads."""
        self._names: dict[str, Expression | _Pointer] = {}
        for name in scalars:
            self.schedule.registers.append(f"r_{name}")
            self._names[name] = Expression(f"r_{name}", 32, registers=frozenset([f"r_{name}"]))
        self._straight = False
        """Whether the current statements have no control flow."""
        self._loaded: list[str] = []
        """The arrays that the current statements read, once for each read."""
        self._lane: int | None = None
        """The lane that computes in a loop over words; -1 in a loop over elements, None elsewhere."""

    def run(self, statements: Iterable[c_ast.Node]) -> int:
        """Appends the states of `statements`, and returns the index of the first state."""
        self.schedule.flush()
        first = len(self.schedule.states)
        with self._scope():
            self._run(list(statements))
        self.schedule.flush()
        self.schedule.states.append(State())
        return first

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
                    number = self._number(name)
                    self.schedule.assign(number.text, number.plus(1, self.wires))
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

    def _capture(self, expression: Expression) -> Expression:
        """A new register with the value of `expression`."""
        register = self.schedule.register(max(32, expression.bits))
        self._captured.add(register)
        return replace(self.schedule.assign(register, expression), divisor=expression.divisor)

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
            self._names[node.name] = self.schedule.assign(self.schedule.register(bits), value)
        elif value.is_constant or value.text in self._captured or (self._straight and not value.is_slow):
            self._names[node.name] = value
        else:
            self._names[node.name] = self._capture(value)

    def _assignment(self, node: c_ast.Assignment) -> None:
        """An assignment to an element of an array, or to a variable."""
        value = self._value(node.rvalue)
        if isinstance(node.lvalue, c_ast.ArrayRef):
            place = self._place(node.lvalue)
            if node.op != "=":
                value = self.wires.binary(node.op[0], self._element(node.lvalue), value)
            self.schedule.store(place.array, place.offset, value)
            return
        number = self._number(_name_of(node.lvalue))
        if node.op != "=":
            value = self.wires.binary(node.op[0], number, value)
        self.schedule.assign(number.text, value)

    def _number(self, name: str) -> Expression:
        """The value of the variable or constant `name`."""
        value = self._names[name]
        assert isinstance(value, Expression), name
        return value

    def _if(self, node: c_ast.If) -> None:
        """A condition around statements."""
        states = self.schedule.states
        condition = self._value(node.cond).truth(self.wires)
        branch = self.schedule.flush(condition)
        assert branch is not None
        with self._scope():
            self._run(_items(node.iftrue))
        self.schedule.flush()
        if node.iffalse is not None:
            states.append(last := State())
        branch.otherwise = len(states)
        if node.iffalse is not None:
            with self._scope():
                self._run(_items(node.iffalse))
            self.schedule.flush()
            last.next = len(states)

    # Loops

    def _for(self, node: c_ast.For) -> None:
        """A loop over an index."""
        schedule = self.schedule
        (declaration,) = node.init.decls
        start, end = self._value(declaration.init), self._value(node.cond.right)
        step = 1 if isinstance(node.next, c_ast.UnaryOp) else int(node.next.rvalue.value)
        is_constant = start.is_constant and end.is_constant
        if is_constant and int(start.text) >= int(end.text):
            return
        if not end.is_constant:
            end = self._capture(end)
        body = _items(node.stmt)
        with self._scope():
            register = schedule.assign(schedule.register(32), start)
            loop = _Loop(declaration.name, start, end, register)
            is_pipelined = self._is_pipelined(body)
            lanes = self._lanes_of(body[0], loop) if is_pipelined and is_constant and step == 1 else 1
            step *= lanes
            loop.index = self._names[loop.name] = replace(register, divisor=gcd(start.divisor, step))
            test = schedule.flush(None if is_constant else self.wires.binary("<", register, end))
            following = loop.index.plus(step, self.wires)
            repeat = self.wires.binary("<", following, end)
            if is_pipelined:
                first = self._pipelined(body[0], loop, following, lanes)
            else:
                first = len(schedule.states)
                self._run(body)
            cycle = schedule.use(repeat, schedule.last_cycle)
            schedule.state(cycle).assignments.append(f"{register.text} <= {following.text};")
            last = schedule.flush()
            assert last is not None
            last.condition, last.next, last.otherwise = repeat.text, first, len(schedule.states)
            if test is not None and not is_constant:
                test.otherwise = len(schedule.states)

    def _is_pipelined(self, body: list[c_ast.Node]) -> bool:
        """Whether a loop's body is one assignment to an array that reads each array at most once.

        It may read the array that it assigns to only in an assignment such as ``+=``.
        """
        if len(body) != 1 or not isinstance(body[0], c_ast.Assignment):
            return False
        (statement,) = body
        if not isinstance(statement.lvalue, c_ast.ArrayRef):
            return False
        loads, target = self._loads_of(statement), self._pointer(statement.lvalue.name).array
        inner = [load for ref in _references(statement) for load in self._loads_of(ref.subscript)]
        reads_target = target.name in loads
        return (
            not inner
            and len(set(loads)) == len(loads)
            and (not reads_target or statement.op != "=")
            and target.values is None
        )

    def _lanes_of(self, node: c_ast.Assignment, loop: _Loop) -> int:
        """The number of elements that `loop` handles per cycle; :attr:`lanes` records it if it exceeds 1."""
        references = _references(node)
        with self._scope():
            self._names[loop.name] = loop.start
            places = [self._place(ref) for ref in references]
        if not all(_is_contiguous(ref.subscript, loop.name) for ref in references):
            return 1
        lanes = min(place.array.lanes for place in places)
        while any(place.offset.divisor % lanes for place in places):
            lanes //= 2
        if lanes > 1:
            for place in places:
                self.lanes[place.array.name] = min(lanes, self.lanes.get(place.array.name, lanes))
        return lanes

    def _pipelined(self, node: c_ast.Assignment, loop: _Loop, following: Expression, lanes: int) -> int:
        """A loop of one state, which reads the words of the next index while it writes the current one.

        Returns the index of the state. The state before it reads the words of the first index.
        """
        schedule, wires = self.schedule, self.wires
        references = [ref for ref in _references(node) if ref is not node.lvalue or node.op != "="]
        for ref in references:
            place = self._place(ref)
            schedule.read(schedule.use(place.offset), place.array, place.offset)
        schedule.flush()
        first = len(schedule.states)
        self._names[loop.name] = following
        ahead = [self._place(ref) for ref in references]
        self._names[loop.name] = loop.index
        target = self._place(node.lvalue)
        values, enables = [], []
        is_full = int(loop.end.text) % lanes == 0 if lanes > 1 else True
        for lane in range(lanes):
            self._lane = lane if lanes > 1 else -1
            self._names[loop.name] = index = loop.index.plus(lane, wires)
            value = self._value(node.rvalue)
            if node.op != "=":
                value = wires.binary(node.op[0], self._element(node.lvalue), value)
            values.append(value)
            enables.append("1'b1" if is_full else wires.binary("<", index, loop.end).text)
        self._lane = None
        for place in ahead:
            schedule.read(0, place.array, place.offset)
        schedule.write(0, target.array, target.offset, values, enables)
        return first

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
                return self._element(node)
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

    def _element(self, node: c_ast.ArrayRef) -> Expression:
        """The value of an element of an array.

        In a pipelined loop, an earlier cycle has read it. Elsewhere, this method reads it, and copies it to a
        register if another statement may read the array before the value is used.
        """
        place = self._place(node)
        if self._lane is not None:
            result = place.array.result(self._lane if self._lane >= 0 else None)
            return replace(result, loads=frozenset())
        loaded = self.schedule.load(place.array, place.offset)
        if not self._straight or self._loaded.count(place.array.name) > 1:
            return self._capture(loaded)
        return loaded

    def _pointer(self, node: c_ast.Node) -> _Pointer:
        """A pointer expression: an array, or a pointer plus an index."""
        if isinstance(node, c_ast.BinaryOp):
            pointer = self._pointer(node.left)
            return _Pointer(pointer.array, self.wires.binary("+", pointer.offset, self._value(node.right)))
        name = _name_of(node)
        named = self._names.get(name)
        if isinstance(named, _Pointer):
            return named
        return _Pointer(self.schedule.arrays[name], self.wires.constant(0))

    def _place(self, node: c_ast.ArrayRef) -> _Pointer:
        """The array and the index of an element of an array."""
        pointer = self._pointer(node.name)
        return _Pointer(pointer.array, self.wires.binary("+", pointer.offset, self._value(node.subscript)))


def _is_contiguous(subscript: c_ast.Node, index: str) -> bool:
    """Whether `subscript` is the variable `index`, or its sum with a number."""
    if isinstance(subscript, c_ast.BinaryOp) and subscript.op == "+":
        return _is_contiguous(subscript.right, index)
    return isinstance(subscript, c_ast.ID) and subscript.name == index


def _references(node: c_ast.Node) -> list[c_ast.ArrayRef]:
    """All elements of arrays in `node`."""
    inner = [ref for _, child in node.children() for ref in _references(child)]
    return [*inner, node] if isinstance(node, c_ast.ArrayRef) else inner


def _items(node: c_ast.Node) -> list[c_ast.Node]:
    """The statements of a block, or the single statement."""
    return list(node.block_items or []) if isinstance(node, c_ast.Compound) else [node]


def _name_of(node: Any) -> str:
    """The name of a variable or an array; a field of the struct without the names of struct and union."""
    return str(node.field.name if isinstance(node, c_ast.StructRef) else node.name)
