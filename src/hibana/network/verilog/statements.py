"""Turns the statements of a C program into the states of a state machine.

The C code of a network uses few constructs: loops, conditions, integer expressions, arrays and constants.

The last state of a loop's body reads the elements that the next pass needs, so the loop of a statement such
as ``sum[o] += row[o]`` handles one element per cycle. It handles one word of several elements if each array
of the statement has words of as many lanes, and the loop starts with a word.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, cast

from pycparser import c_ast, c_generator

from hibana.compiler.graph.ops import Unsupported
from hibana.network.verilog.circuit import Array, Circuit, Expression

__all__ = ["Machine"]


@dataclass
class _Pointer:
    """A pointer of C: an array and an index."""

    array: Array
    offset: Expression


class Machine:
    """The state machine of a C program; each call of :meth:`run` appends states."""

    def __init__(self, arrays: Iterable[Array], counters: Mapping[str, int], largest: int) -> None:
        """`counters` are the largest values of the variables of the struct, integers that are not negative.

        `largest` is the largest value of the other variables; no value is less than ``-largest - 1``.
        """
        self.circuit, self.largest = Circuit(arrays), largest
        self.lanes: dict[str, int] = {}
        """Lanes of the arrays that loops read or write in words of several elements."""
        self._names: dict[str, Any] = {
            name: self.circuit.register(0, high, f"r_{name}") for name, high in counters.items()
        }
        """The value of each constant and variable of C; a variable is a register."""
        self._variables = {f"r_{name}" for name in counters}
        """The registers of variables."""
        self._read_ahead: list[c_ast.ArrayRef] = []
        """The elements that the current loop has read already."""
        self._enables = ["1'b1"]
        """For each lane of the current loop: whether it writes."""
        self._lane: int | None = None
        """The lane that computes in a loop over words, else None."""

    def run(self, statements: Iterable[c_ast.Node]) -> tuple[int, int]:
        """Appends the states of `statements`, and returns the indices of the first and the last state."""
        first = self.circuit.start_state()
        self._run(statements)
        if self.circuit.written[self.circuit.state]:
            self.circuit.start_state()
        return first, self.circuit.state

    # Statements

    def _run(self, statements: Iterable[c_ast.Node]) -> None:
        """Appends the states of a block of C, whose names and registers end with it."""
        circuit, outer = self.circuit, (self._names, self._variables, self.circuit.numbered)
        self._names = dict(self._names)
        for statement in statements:
            match statement:
                case c_ast.Decl():
                    self._declare(statement)
                case c_ast.Assignment():
                    self._assignment(statement)
                case c_ast.For():
                    self._for(statement)
                case c_ast.If(iffalse=None):
                    state = circuit.branch(self._value(statement.cond))
                    circuit.start_state()
                    self._run(_items(statement.iftrue))
                    circuit.join(state)
                case c_ast.Compound():
                    self._run(_items(statement))
                case _:
                    raise Unsupported(f"no circuit for the C statement {type(statement).__name__}")
        self._names, self._variables, circuit.numbered = outer

    def _register(self, value: Expression) -> Expression:
        """A new register with `value`."""
        register = self.circuit.register(value.low, value.high)
        self.circuit.assign(register, value)
        return replace(register, divisor=value.divisor)

    def _constant(self, value: Expression) -> Expression:
        """`value`, or a register with it if a variable may change it, or if it contains a product."""
        is_stable = value.registers.isdisjoint(self._variables) and not value.is_slow
        return value if is_stable else self._register(value)

    def _declare(self, node: c_ast.Decl) -> None:
        """A pointer, a constant or a variable of C."""
        if isinstance(node.type, c_ast.PtrDecl):
            pointer = self._pointer(node.init)
            self._names[node.name] = _Pointer(pointer.array, self._constant(pointer.offset))
            return
        value = self._value(node.init)
        if "const" in node.quals:
            self._names[node.name] = self._constant(value)
        else:
            self._names[node.name] = variable = self.circuit.register(-self.largest - 1, self.largest)
            self.circuit.assign(variable, value)
            self._variables = self._variables | variable.registers

    def _assignment(self, node: c_ast.Assignment) -> None:
        """An assignment to a variable, to an element of an array, or to each element of a word."""
        if not isinstance(node.lvalue, c_ast.ArrayRef):
            self.circuit.assign(self._names[_name_of(node.lvalue)], self._result(node))
            return
        place, values = self._place(node.lvalue), []
        for lane in range(len(self._enables)):
            self._lane = lane if len(self._enables) > 1 else None
            values.append(self._result(node))
        self._lane = None
        self.circuit.store(place.array, place.offset, values, self._enables)

    def _result(self, node: c_ast.Assignment) -> Expression:
        """The value that an assignment stores."""
        value = self._value(node.rvalue)
        return value if node.op == "=" else self.circuit.binary(node.op[0], self._value(node.lvalue), value)

    # Loops

    def _for(self, node: c_ast.For) -> None:
        """A loop over an index; each pass reads elements for the next pass."""
        circuit, body, (declaration,) = self.circuit, _items(node.stmt), node.init.decls
        start, end = self._value(declaration.init), self._constant(self._value(node.cond.right))
        step = 1 if isinstance(node.next, c_ast.UnaryOp) else int(node.next.rvalue.value)
        outer = self._names, self._read_ahead, self._enables, circuit.numbered
        self._names = {**self._names, declaration.name: start}
        self._read_ahead = self._early_reads(body, declaration.name)
        for reference in self._read_ahead:
            self._read(reference)
        step *= (lanes := self._lanes_of(body, declaration.name, end))
        register = circuit.register(start.low, end.high - 1)
        circuit.assign(register, start)
        skip = None if start.high < end.low else circuit.branch(circuit.binary("<", start, end))
        first = circuit.start_state()

        self._names[declaration.name] = index = replace(register, divisor=gcd(start.divisor, step))
        if lanes > 1:
            numbers = (circuit.binary("+", index, circuit.constant(lane)) for lane in range(lanes))
            self._enables = [circuit.binary("<", number, end).truth for number in numbers]
        self._run(body)
        self._names[declaration.name] = following = circuit.binary("+", index, circuit.constant(step))
        places = [self._place(reference) for reference in self._read_ahead]
        circuit.wait(following, *(place.offset for place in places))
        circuit.branch(circuit.binary("==" if step == 1 else ">=", following, end), first)
        for place in places:
            circuit.read(place.array, place.offset)
        circuit.assign(register, following)
        circuit.start_state()
        if skip is not None:
            circuit.join(skip)
        self._names, self._read_ahead, self._enables, circuit.numbered = outer

    def _early_reads(self, body: list[c_ast.Node], index: str) -> list[c_ast.ArrayRef]:
        """The elements that each pass of a loop over `index` can read for the next pass.

        The body has no control flow, reads the array once, does not change the element's place in it, and
        writes no other element of the array, nor this element before the read.
        """
        if any(isinstance(s, c_ast.For | c_ast.If | c_ast.Compound) or _is_pointer(s) for s in body):
            return []
        targets = [s if isinstance(s, c_ast.Decl) else s.lvalue for s in body]
        changed = {_name_of(target) for target in targets if not isinstance(target, c_ast.ArrayRef)}
        stores = [target for target in targets if isinstance(target, c_ast.ArrayRef)]
        reads = [ref for s in body for ref in _references(s) if ref not in stores or s.op != "="]
        arrays = {ref: self._pointer(ref.name).array.name for ref in (*stores, *reads)}
        statements = {ref: i for i, s in enumerate(body) for ref in _references(s)}
        return [
            ref
            for ref in reads
            if not _references(ref.subscript)
            and changed.isdisjoint(re.findall(r"\w+", _text(ref)))
            and [arrays[other] for other in reads].count(arrays[ref]) == 1
            and all(
                _text(store) == _text(ref)
                and _is_contiguous(ref, index)
                and statements[store] >= statements[ref]
                for store in stores
                if arrays[store] == arrays[ref]
            )
        ]

    def _lanes_of(self, body: list[c_ast.Node], index: str, end: Expression) -> int:
        """The number of elements that a loop handles per state; :attr:`lanes` records it if it exceeds 1.

        All elements of the only statement are at ``start + index``, and read by the pass before.
        """
        statement, references = body[0], _references(body[0])
        if (
            len(body) > 1
            or not isinstance(statement, c_ast.Assignment)
            or end.number is None
            or len(self._read_ahead) + (statement.op == "=") < len(references)
            or not all(_is_contiguous(reference, index) for reference in references)
            or len(references) < len(re.findall(rf"\b{index}\b", _text(statement)))
        ):
            return 1
        places = [self._place(reference) for reference in references]
        lanes = min(place.array.lanes for place in places)
        while any(place.offset.divisor % lanes for place in places):
            lanes //= 2
        if lanes > 1:
            for place in places:
                self.lanes[place.array.name] = min(lanes, self.lanes.get(place.array.name, lanes))
        return lanes

    # Expressions

    def _value(self, node: c_ast.Node) -> Expression:
        """The value of an expression of C."""
        match node:
            case c_ast.Constant():
                return self.circuit.constant(int(node.value))
            case c_ast.ID() | c_ast.StructRef():
                return cast(Expression, self._names[_name_of(node)])
            case c_ast.ArrayRef():
                return self._element(node)
            case c_ast.Cast():
                return self._value(node.expr)
            case c_ast.UnaryOp():
                return self.circuit.unary(node.op, self._value(node.expr))
            case c_ast.BinaryOp():
                return self.circuit.binary(node.op, self._value(node.left), self._value(node.right))
            case c_ast.TernaryOp():
                return self.circuit.choice(*map(self._value, (node.cond, node.iftrue, node.iffalse)))
        raise Unsupported(f"no circuit for the C expression {type(node).__name__}")

    def _element(self, node: c_ast.ArrayRef) -> Expression:
        """The value of an element of an array, in a register unless the pass before has read the element."""
        if node in self._read_ahead:
            return self._pointer(node.name).array.result(self._lane)
        array = self._read(node)
        self.circuit.start_state()
        return self._register(array.result())

    def _read(self, node: c_ast.ArrayRef) -> Array:
        """Reads an element of an array as soon as possible, and returns the array."""
        place = self._place(node)
        self.circuit.wait(place.offset, resource=place.array.name)
        if place.array.name in self.circuit.late:
            self.circuit.start_state()
        self.circuit.read(place.array, place.offset)
        return place.array

    def _pointer(self, node: c_ast.Node) -> _Pointer:
        """A pointer expression: an array, or a pointer plus or minus an index."""
        if isinstance(node, c_ast.BinaryOp):
            pointer, index = self._pointer(node.left), self._value(node.right)
            return _Pointer(pointer.array, self.circuit.binary(node.op, pointer.offset, index))
        named = self._names.get(name := _name_of(node))
        if isinstance(named, _Pointer):
            return named
        return _Pointer(self.circuit.arrays[name], self.circuit.constant(0))

    def _place(self, node: c_ast.ArrayRef) -> _Pointer:
        """The array and the index of an element of an array."""
        pointer = self._pointer(node.name)
        return _Pointer(pointer.array, self.circuit.binary("+", pointer.offset, self._value(node.subscript)))


_text = c_generator.CGenerator().visit


def _is_contiguous(reference: c_ast.ArrayRef, index: str) -> bool:
    """Whether the subscript is the variable `index`, or the sum of a number and it."""
    return re.search(rf"(\[| \+ ){index}\]$", _text(reference)) is not None


def _is_pointer(statement: c_ast.Node) -> bool:
    """Whether a statement declares a pointer."""
    return isinstance(statement, c_ast.Decl) and isinstance(statement.type, c_ast.PtrDecl)


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
