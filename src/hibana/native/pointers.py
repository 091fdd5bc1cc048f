"""Addresses in a kernel that is being written: typed, so that an index counts elements."""

from typing import Any, ClassVar, Self, TypeVar

from hibana.native.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.native.values import Operand, Value, constant
from hibana.native.writer import Writer

__all__ = ["Bytes", "Doubles", "Floats", "Ints", "Kind", "Longs", "Pointer", "Shorts", "taken"]


class Pointer:
    """An address of elements of one type; a kind of pointer for each."""

    element: ClassVar[Type]

    def __init__(self, writer: Writer, text: str) -> None:
        self.writer = writer
        self.text = text

    def __add__(self, count: Operand) -> Self:
        """The address `count` elements further."""
        return self._moved(self.element.element, count)

    def bytes(self, count: Operand) -> Self:
        """The address `count` bytes further."""
        return self._moved("i8", count)

    def of(self, kind: "type[_Pointer]") -> "_Pointer":
        """The same address, as one of what `kind` points at."""
        return kind(self.writer, self.text)

    def __getitem__(self, index: Operand) -> Value:
        return (self + index).load()

    def __setitem__(self, index: Operand, value: Operand) -> None:
        (self + index).store(value)

    def load(self, lanes: int = 1, there: Value | None = None, align: int = 0, absent: float = 0) -> Value:
        """The element here, or the vector of those from here on; `absent` where it is not `there`."""
        type_ = self.element.of(lanes)
        align = align or self.element.size
        if there is None:
            return Value(self.writer, type_, self._let(f"load {type_}, ptr {self.text}, align {align}"))
        rest = f"i32 {align}, {there}, {constant(self.writer, type_, absent)}"
        call = f"call {type_} @llvm.masked.load.{type_.mangled}.p0(ptr {self.text}, {rest})"
        return Value(self.writer, type_, self._let(call))

    def store(
        self, value: Operand, there: Value | None = None, align: int = 0, *, nontemporal: bool = False
    ) -> None:
        """Writes one element, or a vector of them where it is `there`, past the caches if `nontemporal`."""
        if not isinstance(value, Value):
            value = constant(self.writer, self.element, value)
        align = align or self.element.size
        if there is not None:
            name = f"@llvm.masked.store.{value.type.mangled}.p0"
            self.writer.do(f"call void {name}({value}, ptr {self.text}, i32 {align}, {there})")
            return
        hint = ", !nontemporal !0" if nontemporal else ""
        self.writer.do(f"store {value}, ptr {self.text}, align {align}{hint}")

    def clear(self, count: Operand, byte: int = 0) -> None:
        """Writes zeros, or another `byte`, to all of `count` elements."""
        size = self._size(count)
        self.writer.do(f"call void @llvm.memset.p0.i64(ptr {self.text}, i8 {byte}, {size}, i1 false)")

    def fetch(self, *, to_write: bool) -> None:
        """Has the line of the cache that this lies in be fetched."""
        self.writer.do(f"call void @llvm.prefetch.p0(ptr {self.text}, i32 {int(to_write)}, i32 3, i32 1)")

    def copy(self, source: "Pointer", count: Operand) -> None:
        """Writes `count` elements of `source`, which must not overlap."""
        size = self._size(count)
        self.writer.do(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {self.text}, ptr {source.text}, {size}, i1 false)"
        )

    def instead(self, condition: Value, other: "Pointer") -> Self:
        """The address of the `other` if the `condition` holds, else this one."""
        chosen = f"select {condition}, ptr {other.text}, ptr {self.text}"
        return type(self)(self.writer, self._let(chosen))

    def address(self) -> Value:
        """This address as an integer of 64 bits."""
        return Value(self.writer, LONG, self._let(f"ptrtoint ptr {self.text} to i64"))

    @classmethod
    def at(cls, address: Value) -> Self:
        """What is at an address that :meth:`address` gave."""
        return cls(address.writer, address.writer.let("", f"inttoptr {address} to ptr"))

    def given(self) -> Value:
        """Whether it is an address at all: zero stands for none."""
        return Value(self.writer, BIT, self._let(f"icmp ne ptr {self.text}, null"))

    def _size(self, count: Operand) -> Value:
        if isinstance(count, Value):
            return count * self.element.size
        return constant(self.writer, LONG, count * self.element.size)

    def _moved(self, kind: str, count: Operand) -> Self:
        if not isinstance(count, Value):
            count = constant(self.writer, LONG, count)
        return type(self)(self.writer, self._let(f"getelementptr {kind}, ptr {self.text}, {count}"))

    def _let(self, said: str) -> str:
        return self.writer.let("", said)


_Pointer = TypeVar("_Pointer", bound=Pointer)
Kind = Type | type[Pointer]
"""What a function takes: a value of a type, or an address."""


def taken(writer: Writer, kind: Kind, text: str) -> Any:
    """What is called `text`, a value or an address as `kind` says."""
    return Value(writer, kind, text) if isinstance(kind, Type) else kind(writer, text)


class Bytes(Pointer):
    """Of bytes."""

    element = BYTE


class Shorts(Pointer):
    """Of integers of 16 bits."""

    element = SHORT


class Ints(Pointer):
    """Of integers of 32 bits."""

    element = INT


class Longs(Pointer):
    """Of integers of 64 bits: numbers, addresses, or words of bits."""

    element = LONG


class Floats(Pointer):
    """Of single-precision numbers."""

    element = FLOAT


class Doubles(Pointer):
    """Of double-precision numbers."""

    element = DOUBLE
