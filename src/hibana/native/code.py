"""A function that is being written: its variables, its loops, and the memory that it takes for itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from hibana.native.pointers import Bytes, Kind, Longs, Pointer, taken
from hibana.native.types import BIT, LONG, Type
from hibana.native.values import Operand, Value, constant, counted
from hibana.native.writer import Writer

__all__ = ["Code", "Variable"]

LINE = 64
"""Bytes of a line of a cache."""

_Pointer = TypeVar("_Pointer", bound=Pointer)


class Variable:
    """A value that changes from one pass of a loop to the next; LLVM keeps it in a register."""

    def __init__(self, writer: Writer, type_: Type, name: str) -> None:
        self._writer = writer
        self._type = type_
        self._name = name

    @property
    def value(self) -> Value:
        """What it is now."""
        text = self._writer.let("", f"load {self._type}, ptr {self._name}")
        return Value(self._writer, self._type, text)

    @value.setter
    def value(self, value: Operand) -> None:
        if not isinstance(value, Value):
            value = constant(self._writer, self._type, value)
        if value.type != self._type:
            raise TypeError(f"a variable of {self._type} cannot become {value.type}")
        self._writer.do(f"store {value}, ptr {self._name}")


class Code:
    """One function as it is written."""

    def __init__(self) -> None:
        self.writer = Writer()
        self.texts: dict[str, None] = {}
        """What defines or declares the functions that it calls."""
        self._variables: list[str] = []
        self._named = 0

    def text(self, head: str, result: Value | None = None) -> str:
        """The whole function, which begins with `head` and gives the `result`."""
        end = f"  ret {'void' if result is None else result}"
        return "\n".join([f"{head} {{", *self._variables, *self.writer.lines, end, "}"])

    def arguments(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """What a kernel is given at ``%args``, by name: addresses and integers of 64 bits."""
        found = {}
        for i, (name, kind) in enumerate(kinds.items()):
            place = Longs(self.writer, "%args") + i
            text = self.writer.let("", f"load {kind if isinstance(kind, Type) else 'ptr'}, ptr {place.text}")
            found[name] = taken(self.writer, kind, text)
        return found

    def constant(self, number: float, type_: Type = LONG) -> Value:
        """A `number`, in each lane of `type_`."""
        return constant(self.writer, type_, number)

    def counted(self, type_: Type) -> Value:
        """The vector 0, 1, 2, … of integers."""
        return counted(self.writer, type_)

    def variable(self, value: Operand, type_: Type = LONG) -> Variable:
        """A variable that is `value` from here on."""
        if not isinstance(value, Value):
            value = self.constant(value, type_)
        name = f"%{self._name('v')}"
        self._variables.append(f"  {name} = alloca {value.type}")
        made = Variable(self.writer, value.type, name)
        made.value = value
        return made

    def array(self, kind: type[_Pointer], count: int) -> _Pointer:
        """Memory for `count` elements on the stack, from a line of the cache on."""
        name = f"%{self._name('m')}"
        self._variables.append(f"  {name} = alloca [{count} x {kind.element}], align {LINE}")
        return kind(self.writer, name)

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """What is written meanwhile, for each number from `start` up, as long as it is less than `stop`."""
        first, last, by = (x.text if isinstance(x, Value) else str(x) for x in (start, stop, step))
        name = self._name("i")
        self._begin(f"{name}.enter")
        with self.writer.loop():
            self._begin(f"{name}.test")
            text = self.writer.let(
                name, f"phi i64 [ {first}, %{name}.enter ], [ %{name}.next, %{name}.again ]"
            )
            i = Value(self.writer, LONG, text)
            self.writer.let(f"{name}.more", f"icmp slt {i}, {last}")
            with self._inside(name, f"%{name}.more"):
                yield i
            self._begin(f"{name}.again")
            self.writer.let(f"{name}.next", f"add {i}, {by}")
            self.writer.do(f"br label %{name}.test")
        self.writer.label(f"{name}.done")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """What is written meanwhile, if the `condition` holds."""
        name = self._name("w")
        with self._inside(name, condition.text):
            yield
        self._begin(f"{name}.done")

    def fence(self) -> None:
        """Has all that was written before be seen before all that is written after."""
        self.writer.do("fence seq_cst")

    @contextmanager
    def each_bit(self, word: Value) -> Iterator[Value]:
        """What is written meanwhile, for the position of each bit of `word` that is set, from the lowest."""
        left, name = self.variable(word), self._name("b")
        with self.writer.loop():
            self._begin(f"{name}.test")
            bits = left.value
            with self._inside(name, bits.differs(0).text):
                yield bits.call("cttz", constant(self.writer, BIT, 1))
                left.value = bits & (bits - 1)
            self.writer.do(f"br label %{name}.test")
        self.writer.label(f"{name}.done")

    @contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """What is written meanwhile, again and again while the condition given to what this yields holds."""
        name, conditions = self._name("r"), list[Value]()
        with self.writer.loop():
            self._begin(f"{name}.body")
            yield conditions.append
            (condition,) = conditions
            self.writer.do(f"br i1 {condition.text}, label %{name}.body, label %{name}.done")
        self.writer.label(f"{name}.done")

    def vectors(self, count: Value, lanes: int) -> Iterator[tuple[Value, Value | None]]:
        """Where each vector of `lanes` of `count` elements begins, and which of its elements are there.

        What is done with them is written twice: for whole vectors, with None for that all elements are there,
        and for what is left.
        """
        whole = count - count % lanes
        with self.loop(0, whole, lanes) as at:
            yield at, None
        with self.when(whole < count):
            yield whole, self.first(count - whole, lanes)

    def first(self, count: Value, lanes: int) -> Value:
        """Truth values of which the first `count` hold; `lanes` of them, at most 64."""
        return (~(self.constant(-1) << count)).mask(lanes)

    @contextmanager
    def scratch(self, *parts: tuple[type[Pointer], Operand]) -> Iterator[tuple[Pointer, ...]]:
        """Memory of the function's own, while what is written meanwhile runs: so many elements of each kind.

        Each part begins with a line of the cache.
        """
        self.texts |= {"declare noalias ptr @malloc(i64)": None, "declare void @free(ptr)": None}
        begins, end = list[Value](), self.constant(0)
        for kind, count in parts:
            begins.append(end)
            size = (count if isinstance(count, Value) else self.constant(count)) * kind.element.size
            end = end + ((size + (LINE - 1)) & -LINE)
        whole = Bytes(self.writer, self.writer.let("", f"call ptr @malloc({end + LINE})"))
        block = whole + ((0 - whole.address()) & (LINE - 1))
        yield tuple((block + begin).of(kind) for begin, (kind, _) in zip(begins, parts, strict=True))
        self.writer.do(f"call void @free(ptr {whole.text})")

    def _begin(self, block: str) -> None:
        """Goes on in a block of this name."""
        self.writer.do(f"br label %{block}")
        self.writer.label(block)

    @contextmanager
    def _inside(self, name: str, condition: str) -> Iterator[None]:
        """What is written meanwhile is a block that is entered if the `condition` holds; else ``.done``."""
        self.writer.do(f"br i1 {condition}, label %{name}.body, label %{name}.done")
        self.writer.label(f"{name}.body")
        self.writer.depth += 1
        yield
        self.writer.depth -= 1

    def _name(self, kind: str) -> str:
        self._named += 1
        return f"{kind}{self._named}"
