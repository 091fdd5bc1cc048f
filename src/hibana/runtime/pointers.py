"""Typed addresses in the kernel under construction: an index counts elements, not bytes."""

from typing import Any, ClassVar, Self, TypeVar

from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Operand, Value, constant
from hibana.runtime.writer import Writer


class Pointer:
    """An address of elements of one type; each element type has its subclass."""

    element: ClassVar[Type]

    def __init_subclass__(cls, element: Type) -> None:
        cls.element = element

    def __init__(self, writer: Writer, text: str) -> None:
        self.writer = writer
        self.text = text

    def __add__(self, count: Operand) -> Self:
        """The address `count` elements after this one."""
        return self._moved(self.element, count)

    def bytes(self, count: Operand) -> Self:
        """The address `count` bytes after this one."""
        return self._moved(BYTE, count)

    def of(self, kind: "type[_Pointer]") -> "_Pointer":
        """The same address, cast to the pointer type `kind`."""
        return kind(self.writer, self.text)

    def __getitem__(self, index: Operand) -> Value:
        return (self + index).load()

    def __setitem__(self, index: Operand, value: Operand) -> None:
        (self + index).store(value)

    def load(self, width: int = 1, there: Value | None = None, align: int = 0, other: float = 0) -> Value:
        """Loads an element, or a vector; with a mask `there`, its other lanes are `other`."""
        type_ = self.element.of(width)
        align = align or self.element.size
        if there is None:
            return Value(self.writer, type_, self.writer.load(type_, self.text, f", align {align}"))
        rest = f"i32 {align}, {there}, {constant(self.writer, type_, other)}"
        call = f"call {type_} @llvm.masked.load.{type_.mangled}.p0(ptr {self.text}, {rest})"
        return Value(self.writer, type_, self._let(call))

    def store(
        self, value: Operand, there: Value | None = None, align: int = 0, *, nontemporal: bool = False
    ) -> None:
        """Stores an element, or a vector, only the lanes of the mask `there` if given."""
        if not isinstance(value, Value):
            value = constant(self.writer, self.element, value)
        align = align or self.element.size
        if there is not None:
            name = f"@llvm.masked.store.{value.type.mangled}.p0"
            self.writer.do(f"call void {name}({value}, ptr {self.text}, i32 {align}, {there})")
            return
        hint = ", !nontemporal !0" if nontemporal else ""
        self.writer.store(value.type, value.text, self.text, f", align {align}{hint}")

    def clear(self, count: Operand, byte: int = 0) -> None:
        """Sets all bytes of `count` elements to `byte`."""
        self.writer.clear(self.text, self.element.size, self._long(count).text, byte)

    def prefetch(self, *, to_write: bool) -> None:
        """Prefetches the cache line of this address."""
        self.writer.do(f"call void @llvm.prefetch.p0(ptr {self.text}, i32 {int(to_write)}, i32 3, i32 1)")

    def copy(self, source: "Pointer", count: Operand) -> None:
        """Copies `count` elements from `source`, which must not overlap."""
        self.writer.copy(self.text, source.text, self.element.size, self._long(count).text)

    def named(self, name: str) -> Self:
        """This address, as a constant called `name` where it is printed as C."""
        return type(self)(self.writer, self.writer.name(None, self.text, name))

    def replace_if(self, condition: Value, other: "Pointer") -> Self:
        """`other` if `condition` is true, else this address."""
        chosen = f"select {condition}, ptr {other.text}, ptr {self.text}"
        return type(self)(self.writer, self._let(chosen))

    def address(self) -> Value:
        """This address as an integer of 64 bits."""
        return Value(self.writer, LONG, self._let(f"ptrtoint ptr {self.text} to i64"))

    @classmethod
    def at(cls, address: Value) -> Self:
        """The pointer of an integer that :meth:`address` returned."""
        return cls(address.writer, address.writer.let("", f"inttoptr {address} to ptr"))

    def is_not_null(self) -> Value:
        """Whether this is not the null pointer, which stands for a tensor that is None."""
        return Value(self.writer, BIT, self._let(f"icmp ne ptr {self.text}, null"))

    def _long(self, count: Operand) -> Value:
        return count if isinstance(count, Value) else constant(self.writer, LONG, count)

    def _moved(self, element: Type, count: Operand) -> Self:
        return type(self)(self.writer, self.writer.offset(element, self.text, self._long(count).text))

    def _let(self, said: str) -> str:
        return self.writer.let("", said)


_Pointer = TypeVar("_Pointer", bound=Pointer)
Kind = Type | type[Pointer]
"""The type of a function's parameter: of a value, or of an address."""


def taken(writer: Writer, kind: Kind, text: str) -> Any:
    """The value or pointer of type `kind` whose LLVM identifier is `text`."""
    return Value(writer, kind, text) if isinstance(kind, Type) else kind(writer, text)


class Bytes(Pointer, element=BYTE):
    """Address of bytes."""


class Shorts(Pointer, element=SHORT):
    """Address of 16-bit integers."""


class Ints(Pointer, element=INT):
    """Address of 32-bit integers."""


class Longs(Pointer, element=LONG):
    """Address of 64-bit integers: numbers, addresses, or words of bits."""


class Floats(Pointer, element=FLOAT):
    """Address of float32 numbers."""


class Doubles(Pointer, element=DOUBLE):
    """Address of float64 numbers."""
