"""Builds a function: its arguments, variables, loops, branches and scratch memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from hibana.runtime.pointers import Bytes, Kind, Longs, Pointer, value_or_pointer
from hibana.runtime.types import BIT, LONG, Type
from hibana.runtime.values import Operand, Value, constant
from hibana.runtime.writer import Writer

LINE = 64
"""Size of a cache line in bytes."""

_Pointer = TypeVar("_Pointer", bound=Pointer)


class Variable:
    """A value that can be assigned, such as the accumulator of a loop; LLVM stores it in a register."""

    def __init__(self, writer: Writer, type_: Type, name: str) -> None:
        self._writer = writer
        self._type = type_
        self._name = name

    @property
    def value(self) -> Value:
        """The current value."""
        return Value(self._writer, self._type, self._writer.load(self._type, self._name, ""))

    @value.setter
    def value(self, value: Operand) -> None:
        """Assigns `value`, a number or a kernel's value of the variable's type."""
        if not isinstance(value, Value):
            value = constant(self._writer, self._type, value)
        if value.type != self._type:
            raise TypeError(f"a variable of {self._type} cannot become {value.type}")
        self._writer.store(value.type, value.text, self._name, "")


class Code:
    """Builds one function."""

    def __init__(self, writer: Writer | None = None) -> None:
        self.writer = writer or Writer()
        self.texts: dict[str, None] = {}
        """Definitions and declarations of the functions that this function calls, in order."""

    def text(self, head: str, result: Value | None = None) -> str:
        """The function's IR: its signature `head`, its body, and the return of `result`."""
        end = f"  ret {'void' if result is None else result}"
        return "\n".join([f"{head} {{", *self.writer.variables, *self.writer.lines, end, "}"])

    def arguments(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Loads a kernel's arguments, addresses or integers of 64 bits, from ``%args``, by their names."""
        arguments = {}
        for i, (name, kind) in enumerate(kinds.items()):
            place = Longs(self.writer, "%args") + i
            text = self.writer.let("", f"load {kind if isinstance(kind, Type) else 'ptr'}, ptr {place.text}")
            arguments[name] = value_or_pointer(self.writer, kind, text)
        return arguments

    def constant(self, number: float, type_: Type = LONG) -> Value:
        """The constant `number`, in each element of `type_`."""
        return constant(self.writer, type_, number)

    def lane_indices(self, type_: Type) -> Value:
        """The vector 0, 1, 2, … of integers."""
        lanes = ", ".join(f"{type_.element} {i}" for i in range(type_.width))
        return Value(self.writer, type_, f"<{lanes}>")

    def variable(self, value: Operand, type_: Type = LONG) -> Variable:
        """A new variable, initialized with `value`."""
        if not isinstance(value, Value):
            value = self.constant(value, type_)
        return Variable(self.writer, value.type, self.writer.variable(value.type, value.text))

    def array(self, kind: type[_Pointer], count: int) -> _Pointer:
        """Memory for `count` elements on the stack, aligned to a cache line."""
        return kind(self.writer, self.writer.allocate("m", f"[{count} x {kind.element}], align {LINE}"))

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1, name: str = "") -> Iterator[Value]:
        """``for i in range(start, stop, step)`` around the body of the ``with`` statement.

        C code calls the index `name`.
        """
        first, last, by = (x.text if isinstance(x, Value) else str(x) for x in (start, stop, step))
        with self.writer.loop(first, last, by, name) as text:
            yield Value(self.writer, LONG, text)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition`` around the body of the ``with`` statement."""
        with self.writer.when(condition.text):
            yield

    def fence(self) -> None:
        """A sequentially consistent memory fence."""
        self.writer.do("fence seq_cst")

    @contextmanager
    def each_bit(self, word: Value) -> Iterator[Value]:
        """A loop over the positions of the set bits of `word`, lowest first."""
        remaining, name = self.variable(word), self.writer.fresh("b")
        with self.writer.region():
            self.writer.begin(f"{name}.test")
            bits = remaining.value
            with self.writer.inside(name, bits.differs(0).text):
                yield bits.call("cttz", constant(self.writer, BIT, 1))
                remaining.value = bits & (bits - 1)
            self.writer.do(f"br label %{name}.test")
        self.writer.label(f"{name}.done")

    @contextmanager
    def do_while(self) -> Iterator[Callable[[Value], None]]:
        """``do ... while`` around the body of the ``with`` statement.

        Yields a function that the body calls with the condition to repeat the loop.
        """
        name, conditions = self.writer.fresh("r"), list[Value]()
        with self.writer.region():
            self.writer.begin(f"{name}.body")
            yield conditions.append
            (condition,) = conditions
            self.writer.do(f"br i1 {condition.text}, label %{name}.body, label %{name}.done")
        self.writer.label(f"{name}.done")

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
        self.texts |= {"declare noalias ptr @malloc(i64)": None, "declare void @free(ptr)": None}
        begins, end = list[Value](), self.constant(0)
        for kind, count in parts:
            begins.append(end)
            size = (count if isinstance(count, Value) else self.constant(count)) * kind.element.size
            end = end + ((size + (LINE - 1)) & -LINE)
        block = Bytes(self.writer, self.writer.let("", f"call ptr @malloc({end + LINE})"))
        # `block` is LINE bytes longer than the arrays, which begin at the next multiple of LINE
        aligned = block + ((0 - block.address()) & (LINE - 1))
        yield tuple((aligned + begin).of(kind) for begin, (kind, _) in zip(begins, parts, strict=True))
        self.writer.do(f"call void @free(ptr {block.text})")
