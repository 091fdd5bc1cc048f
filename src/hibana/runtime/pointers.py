"""Typed addresses in the kernel under construction; an index counts elements, not bytes."""

from typing import Any, ClassVar, Self, TypeVar

from hibana.runtime.loops import (
    Array,
    AtomicAdd,
    AtomicLoad,
    Builder,
    Copy,
    Fill,
    Gather,
    Load,
    MaskedLoad,
    MaskedStore,
    Name,
    Offset,
    Prefetch,
    Result,
    Store,
)
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Operand, Value, constant, value_of


class Pointer:
    """The address of an array; each element type has a subclass."""

    element: ClassVar[Type]

    def __init_subclass__(cls, element: Type) -> None:
        """Sets the element type of a subclass: ``class Floats(Pointer, element=FLOAT)``."""
        cls.element = element

    def __init__(self, builder: Builder, term: Result) -> None:
        self.builder = builder
        self.term = term
        """The address in the data of :mod:`hibana.runtime.loops`."""

    @property
    def array(self) -> Array | None:
        """The array that it points into, if it is known."""
        return self.term if isinstance(self.term, Array) else self.term.array

    def __add__(self, count: Operand) -> Self:
        """The address `count` elements after this one."""
        return self._offset(self.element, count)

    def bytes(self, count: Operand) -> Self:
        """The address `count` bytes after this one."""
        return self._offset(BYTE, count)

    def of(self, kind: "type[_Pointer]") -> "_Pointer":
        """The same address, cast to the pointer type `kind`."""
        return kind(self.builder, self.term)

    def __getitem__(self, index: Operand) -> Value:
        """Loads the element `index`."""
        return (self + index).load()

    def __setitem__(self, index: Operand, value: Operand) -> None:
        """Stores `value` as the element `index`."""
        (self + index).store(value)

    def load(self, width: int = 1, mask: Value | None = None, align: int = 0, other: float = 0) -> Value:
        """Loads an element, or a vector of `width`; elements outside of `mask` are `other`."""
        type_ = self.element.of(width)
        result, align = Result(type_), align or self.element.size
        if mask is None:
            self.builder.add(Load(result, self.term, align))
        else:
            elsewhere = constant(self.builder, type_, other).term
            self.builder.add(MaskedLoad(result, self.term, align, mask.term, elsewhere))
        return Value(self.builder, type_, result)

    def store(
        self, value: Operand, mask: Value | None = None, align: int = 0, *, nontemporal: bool = False
    ) -> None:
        """Stores an element, or a vector, whose elements outside of `mask` are not stored."""
        value = value_of(self.builder, self.element, value)
        align = align or self.element.size
        if mask is None:
            self.builder.add(Store(self.term, value.term, align, nontemporal))
        else:
            self.builder.add(MaskedStore(self.term, value.term, align, mask.term))

    def gather(self, indices: Value, mask: Value | None = None) -> Value:
        """The elements at a vector of 32-bit `indices`; elements outside of `mask` are zero."""
        width = indices.type.width
        lanes = constant(self.builder, BIT.of(width), 1) if mask is None else mask
        type_ = self.element.of(width)
        result = Result(type_)
        other = constant(self.builder, type_, 0).term
        self.builder.add(Gather(result, self.element, self.term, indices.term, lanes.term, other))
        return Value(self.builder, type_, result)

    def clear(self, count: Operand, byte: int = 0) -> None:
        """Sets all bytes of `count` elements to `byte`."""
        self.builder.add(Fill(self.term, self.element.size, value_of(self.builder, LONG, count).term, byte))

    def prefetch(self, *, to_write: bool) -> None:
        """Prefetches the cache line of this address."""
        self.builder.add(Prefetch(self.term, to_write))

    def copy(self, source: "Pointer", count: Operand) -> None:
        """Copies `count` elements from `source`; the two arrays must not overlap."""
        self.builder.add(
            Copy(self.term, source.term, self.element.size, value_of(self.builder, LONG, count).term)
        )

    def atomic_add(self, value: Operand) -> Value:
        """Adds `value` to the element, sequentially consistent, and returns the earlier number."""
        value = value_of(self.builder, self.element, value)
        result = Result(self.element)
        self.builder.add(AtomicAdd(result, self.term, value.term))
        return Value(self.builder, self.element, result)

    def atomic_load(self) -> Value:
        """The element; later reads see what other threads wrote before they changed it."""
        result = Result(self.element)
        self.builder.add(AtomicLoad(result, self.term))
        return Value(self.builder, self.element, result)

    def named(self, name: str) -> Self:
        """This address, which C code stores in a constant called `name`."""
        result = Result(None, self.array)
        self.builder.add(Name(result, self.term, name))
        return type(self)(self.builder, result)

    def replace_if(self, condition: Value, other: "Pointer") -> Self:
        """`other` if `condition` is true, else this address."""
        return type(self)(
            self.builder, self.builder.let(None, "select", condition.term, other.term, self.term)
        )

    def address(self) -> Value:
        """This address as an integer of 64 bits."""
        return Value(self.builder, LONG, self.builder.let(LONG, "address", self.term))

    @classmethod
    def from_address(cls, address: Value) -> Self:
        """The pointer for an address that :meth:`address` returned."""
        return cls(address.builder, address.builder.let(None, "pointer", address.term))

    def is_not_null(self) -> Value:
        """Whether this is not the null pointer, which is the address of a tensor argument None."""
        return Value(self.builder, BIT, self.builder.let(BIT, "exists", self.term))

    def _offset(self, element: Type, count: Operand) -> Self:
        """The address `count` elements of type `element` after this one."""
        result = Result(None, self.array)
        self.builder.add(Offset(result, element, self.term, value_of(self.builder, LONG, count).term))
        return type(self)(self.builder, result)


_Pointer = TypeVar("_Pointer", bound=Pointer)
Kind = Type | type[Pointer]
"""The type of a function's parameter: the type of a value, or a class of pointers."""


def value_or_pointer(builder: Builder, kind: Kind, term: Result) -> Any:
    """The value or pointer of type `kind` that `term` defines."""
    return Value(builder, kind, term) if isinstance(kind, Type) else kind(builder, term)


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
