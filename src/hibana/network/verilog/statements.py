"""Turns the statements of a program into the states of a state machine.

A program of integers uses few of the statements of :mod:`hibana.runtime.loops`. Values are computed where a
statement uses them, as in C: an operation is a wire, and a number read from memory is in a register.

The last state of a loop's body reads the elements that the next pass needs, so the loop of a statement such
as ``sum[o] += row[o]`` handles one element per cycle. It handles one word of several elements if each array
of the statement has words of as many lanes, and the loop starts with a word.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from hibana.compiler.graph.ops import Unsupported
from hibana.network.verilog.circuit import Array, Circuit, Expression
from hibana.runtime import loops
from hibana.runtime.loops import Constant, Operand, Result, is_inversion
from hibana.runtime.types import BIT, INT, LONG

__all__ = ["Machine"]

_Tree = Any
"""A value as the tree of the operations that define it: ``(operation, *trees)``, a named value or a constant.

``("load", address)`` is the number at an address, and ``("add", address, count)`` an address in an array.
"""


@dataclass
class _Pointer:
    """An address: an array and an index."""

    array: Array
    offset: Expression


class Machine:
    """The state machine of a program; each call of :meth:`run` appends states."""

    def __init__(self, arrays: Iterable[Array], counters: Mapping[str, int], largest: int) -> None:
        """`counters` are the largest values of the numbers of the struct, which are not negative.

        `largest` is the largest value of the other variables; no value is less than ``-largest - 1``.
        """
        self.circuit, self.largest = Circuit(arrays), largest
        self.lanes: dict[str, int] = {}
        """Lanes of the arrays that loops read or write in words of several elements."""
        self._counters = {
            name: self.circuit.register(0, high, f"r_{name}") for name, high in counters.items()
        }
        """The register of each number of the struct."""
        self._names: dict[Result, Any] = {}
        """The value of each named value, index and variable, which is a register, and of named addresses."""
        self._trees: dict[Result, _Tree] = {}
        """The trees of the other values and addresses."""
        self._variables = {f"r_{name}" for name in counters}
        """The registers of variables."""
        self._read_ahead: list[_Tree] = []
        """The elements that the current loop has read already."""
        self._enables = ["1'b1"]
        """For each lane of the current loop: whether it writes."""
        self._lane: int | None = None
        """The lane that computes in a loop over words, else None."""

    def run(self, body: Iterable[loops.Statement]) -> tuple[int, int]:
        """Appends the states of statements, and returns the indices of the first and the last state."""
        first = self.circuit.start_state()
        self._run(body)
        if self.circuit.written[self.circuit.state]:
            self.circuit.start_state()
        return first, self.circuit.state

    # Statements

    def _run(self, body: Iterable[loops.Statement]) -> None:
        """Appends the states of a block, whose names and registers end with it."""
        circuit, outer = self.circuit, (self._names, self._variables, self.circuit.numbered)
        self._names = dict(self._names)
        for statement in body:
            match statement:
                case loops.Let() | loops.Offset() | loops.Load() | loops.Read():
                    self._define(statement)
                case loops.Name(result, value) if result.type is None:
                    place = self._place(self._tree(value))
                    self._names[result] = _Pointer(place.array, self._constant(place.offset))
                case loops.Name(result, value):
                    self._names[result] = self._constant(self._value(self._tree(value)))
                case loops.Define(variable, value):
                    first = self._value(self._tree(value))
                    self._names[variable] = register = circuit.register(-self.largest - 1, self.largest)
                    circuit.assign(register, first)
                    self._variables = self._variables | register.registers
                case loops.Assign(variable, value):
                    circuit.assign(self._names[variable], self._value(self._tree(value)))
                case loops.Store(address, value):
                    self._store(self._tree(address), self._tree(value))
                case loops.Fill(address, _, count, 0):
                    self._each(address, count, None)
                case loops.Copy(target, source, _, count):
                    self._each(target, count, source)
                case loops.For():
                    self._for(statement)
                case loops.If(condition, inner):
                    state = circuit.branch(self._value(self._tree(condition)))
                    circuit.start_state()
                    self._run(inner)
                    circuit.join(state)
                case loops.Section(_, inner):
                    self._run(inner)
                case _:
                    raise Unsupported(f"no circuit for the statement {type(statement).__name__}")
        self._names, self._variables, circuit.numbered = outer

    def _constant(self, value: Expression) -> Expression:
        """`value`, or a register with it if a variable may change it, or if it contains a product."""
        is_stable = value.registers.isdisjoint(self._variables) and not value.is_slow
        return value if is_stable else self._register(value)

    def _register(self, value: Expression) -> Expression:
        """A new register with `value`."""
        register = self.circuit.register(value.low, value.high)
        self.circuit.assign(register, value)
        return replace(register, divisor=value.divisor)

    def _store(self, address: _Tree, value: _Tree) -> None:
        """Writes a number of the struct, an element of an array, or each element of a word."""
        if isinstance(address, loops.Array) and address.is_number:
            self.circuit.assign(self._counters[address.name], self._value(value))
            return
        place, values = self._place(address), []
        for lane in range(len(self._enables)):
            self._lane = lane if len(self._enables) > 1 else None
            values.append(self._value(value))
        self._lane = None
        self.circuit.store(place.array, place.offset, values, self._enables)

    def _each(self, target: Operand, count: Operand, source: Operand | None) -> None:
        """Copies `count` elements from the address `source` to `target`; sets them to 0 if it is None."""
        zero, one, index, value = Constant(LONG, 0), Constant(LONG, 1), Result(LONG), Result(INT)
        i = zero if count == one else index
        place = Result(None)
        self._trees[place] = "add", self._tree(target), i
        if source is not None:
            self._trees[value] = "load", ("add", self._tree(source), i)
        body = (loops.Store(place, zero if source is None else value, INT.size),)
        self._run(body if count == one else [loops.For(index, zero, count, one, body, "o")])

    # Loops

    def _for(self, loop: loops.For) -> None:
        """A loop over an index; each pass reads elements for the next pass."""
        circuit = self.circuit
        start, end = self._value(self._tree(loop.start)), self._constant(self._value(self._tree(loop.stop)))
        assert isinstance(loop.step, Constant)
        step = int(loop.step.number)
        outer = self._names, self._read_ahead, self._enables, circuit.numbered
        self._names = {**self._names, loop.index: start}
        effects = self._effects(loop.body)
        self._read_ahead = self._early_reads(effects, loop.index)
        for load in self._read_ahead:
            self._read(load)
        step *= (lanes := self._lanes_of(effects, loop.index, end))
        register = circuit.register(start.low, end.high - 1)
        circuit.assign(register, start)
        skip = None if start.high < end.low else circuit.branch(circuit.binary("lt", start, end))
        first = circuit.start_state()

        self._names[loop.index] = index = replace(register, divisor=gcd(start.divisor, step))
        if lanes > 1:
            numbers = (circuit.binary("add", index, circuit.constant(lane)) for lane in range(lanes))
            self._enables = [circuit.binary("lt", number, end).truth for number in numbers]
        self._run(loop.body)
        self._names[loop.index] = following = circuit.binary("add", index, circuit.constant(step))
        places = [self._place(address) for _, address in self._read_ahead]
        circuit.wait(following, *(place.offset for place in places))
        circuit.branch(circuit.binary("eq" if step == 1 else "ge", following, end), first)
        for place in places:
            circuit.read(place.array, place.offset)
        circuit.assign(register, following)
        circuit.start_state()
        if skip is not None:
            circuit.join(skip)
        self._names, self._read_ahead, self._enables, circuit.numbered = outer

    def _effects(self, body: loops.Body) -> list[tuple[_Tree, _Tree]]:
        """What a body without control flow sets, a variable, a name or an address, and the values.

        The list is empty if the body has loops, conditions, or names for addresses.
        """
        effects = []
        for statement in body:
            match statement:
                case loops.Let() | loops.Offset() | loops.Load() | loops.Read():
                    self._define(statement)
                case loops.Store(target, value):
                    effects.append((self._tree(target), self._tree(value)))
                case loops.Define(target, value) | loops.Assign(target, value):
                    effects.append((target, self._tree(value)))
                case loops.Name(target, value) if target.type is not None:
                    effects.append((target, self._tree(value)))
                case _:
                    return []
        return effects

    def _early_reads(self, effects: list[tuple[_Tree, _Tree]], index: Result) -> list[_Tree]:
        """The elements that each pass of a loop over `index` can read for the next pass.

        The body reads the array once, does not change the element's place in it, and writes no other element
        of the array, nor this element before the read.
        """
        reads = {load: i for i, effect in enumerate(effects) for load in _loads(effect)}
        arrays = [self._array_of(load) for load in reads]
        targets = [target for target, _ in effects]
        return [
            load
            for (load, i), array in zip(reads.items(), arrays, strict=True)
            if array is not None
            and not any(_loads(load[1]))
            and set(targets).isdisjoint(_leaves(load))
            and arrays.count(array) == 1
            and all(
                target == load[1] and _is_contiguous(target, index) and written >= i
                for written, target in enumerate(targets)
                if isinstance(target, tuple) and self._array_of(target) == array
            )
        ]

    def _lanes_of(self, effects: list[tuple[_Tree, _Tree]], index: Result, end: Expression) -> int:
        """The number of elements that a loop handles per state; :attr:`lanes` records it if it exceeds 1.

        All elements of the only statement are at ``start + index``, and read by the pass before.
        """
        if len(effects) != 1 or end.number is None:
            return 1
        ((target, value),) = effects
        loads = list(_loads(value))
        addresses = [target, *(address for _, address in loads)]
        if (
            len(self._read_ahead) < len(loads)
            or not all(_is_contiguous(address, index) for address in addresses)
            or _leaves(value).count(index) > len(loads)
        ):
            return 1
        places = [self._place(address) for address in addresses]
        lanes = min(place.array.lanes for place in places)
        while any(place.offset.divisor % lanes for place in places):
            lanes //= 2
        if lanes > 1:
            for place in places:
                self.lanes[place.array.name] = min(lanes, self.lanes.get(place.array.name, lanes))
        return lanes

    # Values

    def _define(self, statement: loops.Let | loops.Offset | loops.Load | loops.Read) -> None:
        """Stores the tree of the result of `statement`; conversions of integers change no number."""
        match statement:
            case loops.Let(_, "extend" | "extend signed" | "shorten", (operand,)):
                tree = self._tree(operand)
            case loops.Let(result, _, (operand, _)) if is_inversion(statement):
                tree = "not" if result.type == BIT else "invert", self._tree(operand)
            case loops.Let(_, operation, operands):
                tree = operation, *map(self._tree, operands)
            case loops.Offset(_, _, address, count):
                tree = "add", self._tree(address), self._tree(count)
            case loops.Load(_, address):
                tree = "load", self._tree(address)
            case loops.Read(_, variable):
                tree = variable
        self._trees[statement.result] = tree

    def _tree(self, operand: Operand) -> _Tree:
        """The tree of an operand."""
        return self._trees.get(operand, operand) if isinstance(operand, Result) else operand

    def _value(self, tree: _Tree) -> Expression:
        """The current value of a tree."""
        match tree:
            case Constant(number=number):
                return self.circuit.constant(max(int(number), -self.largest - 1))
            case "load", loops.Array(name=name, is_number=True):
                return self._counters[name]
            case "load", address:
                return self._element(tree, address)
            case "select", *parts:
                return self.circuit.choice(*map(self._value, parts))
            case ("not" | "invert") as operation, part:
                return self.circuit.inverted(self._value(part), is_boolean=operation == "not")
            case operation, *parts:
                return self.circuit.binary(operation, *map(self._value, parts))
        value: Expression = self._names[tree]
        return value

    def _element(self, load: _Tree, address: _Tree) -> Expression:
        """The value of an element of an array, in a register unless the pass before has read the element."""
        if load in self._read_ahead:
            return self._place(address).array.result(self._lane)
        array = self._read(load)
        self.circuit.start_state()
        return self._register(array.result())

    def _read(self, load: _Tree) -> Array:
        """Reads an element of an array as soon as possible, and returns the array."""
        place = self._place(load[1])
        self.circuit.wait(place.offset, resource=place.array.name)
        if place.array.name in self.circuit.late:
            self.circuit.start_state()
        self.circuit.read(place.array, place.offset)
        return place.array

    def _place(self, address: _Tree) -> _Pointer:
        """The array and the index of an address."""
        match address:
            case loops.Array(name=name):
                return _Pointer(self.circuit.arrays[name], self.circuit.constant(0))
            case "add", start, count:
                place = self._place(start)
                offset = self.circuit.binary("add", place.offset, self._value(count))
                return _Pointer(place.array, offset)
        named: _Pointer = self._names[address]
        return named

    def _array_of(self, tree: _Tree) -> str | None:
        """The name of the array of an address or of a load; None for a number of the struct."""
        while isinstance(tree, tuple):
            tree = tree[1]
        name = tree.name if isinstance(tree, loops.Array) else self._names[tree].array.name
        return None if name in self._counters else str(name)


def _parts(tree: _Tree) -> Iterator[_Tree]:
    """All trees in `tree`, each after the trees in it."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from _parts(part)
    yield tree


def _loads(tree: _Tree) -> Iterator[_Tree]:
    """The elements that a tree reads, in the order in which it needs them."""
    return (part for part in _parts(tree) if isinstance(part, tuple) and part[0] == "load")


def _leaves(tree: _Tree) -> list[_Tree]:
    """The names and constants in a tree."""
    return [part for part in _parts(tree) if not isinstance(part, tuple | str)]


def _is_contiguous(address: _Tree, index: Result) -> bool:
    """Whether an address is the sum of the loop's index, as last term, and of numbers that do not vary."""
    match address:
        case "add", start, last:
            is_last = last == index or _is_contiguous(last, index)
            return is_last and index not in _leaves(start)
    return False
