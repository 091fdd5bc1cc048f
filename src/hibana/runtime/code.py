"""Builds a function: its arguments, variables, loops, branches and scratch memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from hibana.runtime.loops import (
    Allocate,
    Assign,
    Builder,
    Define,
    Definition,
    Fence,
    For,
    If,
    Lanes,
    Load,
    Parameter,
    Read,
    Repeat,
    Result,
    Scratch,
)
from hibana.runtime.pointers import Bytes, Kind, Longs, Pointer, value_or_pointer
from hibana.runtime.types import BIT, LONG, Type
from hibana.runtime.values import Operand, Value, constant, value_of

LINE = 64
"""Size of a cache line in bytes."""

_Pointer = TypeVar("_Pointer", bound=Pointer)


class Variable:
    """A value that can be assigned, such as the accumulator of a loop; LLVM stores it in a register."""

    def __init__(self, value: Value) -> None:
        """Defines the variable, with the first value `value`."""
        self._builder, self._type, self._variable = value.builder, value.type, Result(value.type)
        self._builder.add(Define(self._variable, value.term))

    @property
    def value(self) -> Value:
        """The current value."""
        result = Result(self._type)
        self._builder.add(Read(result, self._variable))
        return Value(self._builder, self._type, result)

    @value.setter
    def value(self, value: Operand) -> None:
        """Assigns `value`, a number or a kernel's value of the variable's type."""
        value = value_of(self._builder, self._type, value)
        if value.type != self._type:
            raise TypeError(f"a variable of {self._type} cannot become {value.type}")
        self._builder.add(Assign(self._variable, value.term))


class Code:
    """Builds one function."""

    def __init__(self) -> None:
        self.builder = Builder()
        self._begin, self._end = Parameter(LONG, name="begin"), Parameter(LONG, name="end")
        self._packed_arguments = Parameter(None, name="args")
        """The array of a kernel's arguments."""

    @property
    def begin(self) -> Value:
        """The first work item of a kernel's call."""
        return Value(self.builder, LONG, self._begin)

    @property
    def end(self) -> Value:
        """The end of the work items of a kernel's call."""
        return Value(self.builder, LONG, self._end)

    def kernel(self, name: str) -> Definition:
        """The kernel ``void name(begin, end, args)`` with the statements that were built."""
        parameters = self._begin, self._end, self._packed_arguments
        return Definition(name, parameters, self.builder.take(), None, "kernel")

    def arguments(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Loads a kernel's arguments, addresses or integers of 64 bits, from ``args``, by their names."""
        arguments, packed = {}, Longs(self.builder, self._packed_arguments)
        for i, (name, kind) in enumerate(kinds.items()):
            result = Result(kind if isinstance(kind, Type) else None)
            self.builder.add(Load(result, (packed + i).term, LONG.size))
            arguments[name] = value_or_pointer(self.builder, kind, result)
        return arguments

    def constant(self, number: float, type_: Type = LONG) -> Value:
        """The constant `number`, in each element of `type_`."""
        return constant(self.builder, type_, number)

    def lane_indices(self, type_: Type) -> Value:
        """The vector 0, 1, 2, … of integers."""
        return Value(self.builder, type_, Lanes(type_))

    def variable(self, value: Operand, type_: Type = LONG) -> Variable:
        """A new variable, initialized with `value`."""
        return Variable(value_of(self.builder, type_, value))

    def array(self, kind: type[_Pointer], count: int) -> _Pointer:
        """Memory for `count` elements on the stack, aligned to a cache line."""
        result = Result(None)
        self.builder.add(Allocate(result, kind.element, count, LINE))
        return kind(self.builder, result)

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1, name: str = "") -> Iterator[Value]:
        """``for i in range(start, stop, step)`` around the body of the ``with`` statement.

        C code calls the index `name`.
        """
        first, end, by = (value_of(self.builder, LONG, x).term for x in (start, stop, step))
        index = Result(LONG)
        with self.builder.inside() as body:
            yield Value(self.builder, LONG, index)
        self.builder.add(For(index, first, end, by, tuple(body), name))

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition`` around the body of the ``with`` statement."""
        with self.builder.inside() as body:
            yield
        self.builder.add(If(condition.term, tuple(body)))

    def fence(self) -> None:
        """A sequentially consistent memory fence."""
        self.builder.add(Fence())

    @contextmanager
    def each_bit(self, word: Value) -> Iterator[Value]:
        """A loop over the positions of the set bits of `word`, lowest first."""
        remaining = self.variable(word)
        with self.when(word.differs(0)), self.do_while() as repeat_if:
            bits = remaining.value
            yield bits.call("cttz", self.constant(1, BIT))  # `bits` is not 0
            remaining.value = bits & (bits - 1)
            repeat_if(remaining.value.differs(0))

    @contextmanager
    def do_while(self) -> Iterator[Callable[[Value], None]]:
        """``do ... while`` around the body of the ``with`` statement.

        Yields a function that the body calls with the condition to repeat the loop.
        """
        conditions = list[Value]()
        with self.builder.inside() as body:
            yield conditions.append
        (condition,) = conditions
        self.builder.add(Repeat(tuple(body), condition.term))

    def vectors(self, count: Value, width: int) -> Iterator[tuple[Value, Value | None]]:
        """Yields the offset and the mask of the vectors of `width` elements that cover `count` elements.

        The body is written twice: in a loop over full vectors, with mask None, and for the remainder.
        """
        full = count - count % width
        with self.loop(0, full, width) as offset:
            yield offset, None
        with self.when(full < count):
            yield full, self.first_lanes(count - full, width)

    def first_lanes(self, count: Value, width: int) -> Value:
        """A mask of `width` booleans, at most 64; the first `count` are true."""
        return (~(self.constant(-1) << count)).mask(width)

    @contextmanager
    def scratch(self, *parts: tuple[type[Pointer], Operand]) -> Iterator[tuple[Pointer, ...]]:
        """Heap memory for the body of the ``with`` statement: an array for each (class, length) of `parts`.

        Each array is aligned to a cache line.
        """
        begins, end = list[Value](), self.constant(0)
        for kind, count in parts:
            begins.append(end)
            size = value_of(self.builder, LONG, count) * kind.element.size
            end = end + ((size + (LINE - 1)) & -LINE)
        memory, size = Result(None), end + LINE
        with self.builder.inside() as body:
            # the memory is LINE bytes longer than the arrays, which begin at the next multiple of LINE
            block = Bytes(self.builder, memory)
            aligned = block + ((0 - block.address()) & (LINE - 1))
            yield tuple((aligned + begin).of(kind) for begin, (kind, _) in zip(begins, parts, strict=True))
        self.builder.add(Scratch(memory, size.term, tuple(body)))
