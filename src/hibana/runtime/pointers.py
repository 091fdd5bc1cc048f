"""Typed addresses in the kernel under construction; an index counts elements, not bytes."""

from typing import Any, ClassVar, Self, TypeVar

from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Operand, Value, constant
from hibana.runtime.writer import Writer


class Pointer:
    """The address of an array; each element type has a subclass."""

    element: ClassVar[Type]

    def __init_subclass__(cls, element: Type) -> None:
        """Sets the element type of a subclass: ``class Floats(Pointer, element=FLOAT)``."""
        cls.element = element

    def __init__(self, writer: Writer, text: str) -> None:
        self.writer = writer
        self.text = text

    def __add__(self, count: Operand) -> Self:
        """The address `count` elements after this one."""
        return self._offset(self.element, count)

    def bytes(self, count: Operand) -> Self:
        """The address `count` bytes after this one."""
        return self._offset(BYTE, count)

    def of(self, kind: "type[_Pointer]") -> "_Pointer":
        """The same address, cast to the pointer type `kind`."""
        return kind(self.writer, self.text)

    def __getitem__(self, index: Operand) -> Value:
        """Loads the element `index`."""
        return (self + index).load()

    def __setitem__(self, index: Operand, value: Operand) -> None:
        """Stores `value` as the element `index`."""
        (self + index).store(value)

    def load(self, width: int = 1, mask: Value | None = None, align: int = 0, other: float = 0) -> Value:
        """Loads an element, or a vector of `width`; elements outside of `mask` are `other`."""
        type_ = self.element.of(width)
        align = align or self.element.size
        if mask is None:
            return Value(self.writer, type_, self.writer.load(type_, self.text, f", align {align}"))
        options = f"i32 {align}, {mask}, {constant(self.writer, type_, other)}"
        call = f"call {type_} @llvm.masked.load.{type_.mangled}.p0(ptr {self.text}, {options})"
        return Value(self.writer, type_, self._let(call))

    def store(
        self, value: Operand, mask: Value | None = None, align: int = 0, *, nontemporal: bool = False
    ) -> None:
        """Stores an element, or a vector, whose elements outside of `mask` are not stored."""
        if not isinstance(value, Value):
            value = constant(self.writer, self.element, value)
        align = align or self.element.size
        if mask is not None:
            name = f"@llvm.masked.store.{value.type.mangled}.p0"
            self.writer.do(f"call void {name}({value}, ptr {self.text}, i32 {align}, {mask})")
            return
        hint = ", !nontemporal !0" if nontemporal else ""
        self.writer.store(value.type, value.text, self.text, f", align {align}{hint}")

    def gather(self, indices: Value, mask: Value | None = None) -> Value:
        """The elements at a vector of 32-bit `indices`; elements outside of `mask` are zero."""
        width = indices.type.width
        type_, addresses = self.element.of(width), f"<{width} x ptr>"
        places = self._let(f"getelementptr {self.element}, ptr {self.text}, {indices}")
        lanes = constant(self.writer, BIT.of(width), 1) if mask is None else mask
        options = f"i32 {self.element.size}, {lanes}, {constant(self.writer, type_, 0)}"
        name = f"@llvm.masked.gather.{type_.mangled}.v{width}p0"
        return Value(self.writer, type_, self._let(f"call {type_} {name}({addresses} {places}, {options})"))

    def clear(self, count: Operand, byte: int = 0) -> None:
        """Sets all bytes of `count` elements to `byte`."""
        self.writer.clear(self.text, self.element.size, self._long(count).text, byte)

    def prefetch(self, *, to_write: bool) -> None:
        """Prefetches the cache line of this address."""
        self.writer.do(f"call void @llvm.prefetch.p0(ptr {self.text}, i32 {int(to_write)}, i32 3, i32 1)")

    def copy(self, source: "Pointer", count: Operand) -> None:
        """Copies `count` elements from `source`; the two arrays must not overlap."""
        self.writer.copy(self.text, source.text, self.element.size, self._long(count).text)

    def named(self, name: str) -> Self:
        """This address, which C code stores in a constant called `name`."""
        return type(self)(self.writer, self.writer.name(None, self.text, name))

    def replace_if(self, condition: Value, other: "Pointer") -> Self:
        """`other` if `condition` is true, else this address."""
        return type(self)(self.writer, self._let(f"select {condition}, ptr {other.text}, ptr {self.text}"))

    def address(self) -> Value:
        """This address as an integer of 64 bits."""
        return Value(self.writer, LONG, self._let(f"ptrtoint ptr {self.text} to i64"))

    @classmethod
    def from_address(cls, address: Value) -> Self:
        """The pointer for an address that :meth:`address` returned."""
        return cls(address.writer, address.writer.let("", f"inttoptr {address} to ptr"))

    def is_not_null(self) -> Value:
        """Whether this is not the null pointer, which is the address of a tensor argument None."""
        return Value(self.writer, BIT, self._let(f"icmp ne ptr {self.text}, null"))

    def _long(self, count: Operand) -> Value:
        """`count` as a 64-bit integer of the kernel."""
        return count if isinstance(count, Value) else constant(self.writer, LONG, count)

    def _offset(self, element: Type, count: Operand) -> Self:
        """The address `count` elements of type `element` after this one."""
        return type(self)(self.writer, self.writer.offset(element, self.text, self._long(count).text))

    def _let(self, instruction: str) -> str:
        """The text of the result of LLVM's `instruction`."""
        return self.writer.let("", instruction)


_Pointer = TypeVar("_Pointer", bound=Pointer)
Kind = Type | type[Pointer]
"""The type of a function's parameter: the type of a value, or a class of pointers."""


def value_or_pointer(writer: Writer, kind: Kind, text: str) -> Any:
    """The value or pointer of type `kind` with the LLVM identifier `text`."""
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
