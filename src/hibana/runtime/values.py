"""Typed values of the kernel under construction, with Python operators that append statements.

``a + b`` appends an operation to the function that `a` belongs to and returns its result. Floating-point
operations are never contracted or reassociated, except by :meth:`Value.fused`.
"""

import struct
from collections.abc import Callable, Sequence
from typing import ClassVar

from hibana.runtime.loops import Builder, Constant, Name, Result, Undefined
from hibana.runtime.loops import Operand as Term
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, Type


class Group:
    """A group of integer arguments of a kernel: a subclass annotates one :class:`Value` for each name."""

    def __init__(self, **values: "Value") -> None:
        self.__dict__.update(values)


def _arithmetic(name: str) -> "_Operator":
    """The operator of the operation `name`, whose result has the type of its operands."""
    return lambda left, right: left.let(left.type, name, left.lift(right))


def _comparison(name: str) -> "_Operator":
    """The element-wise comparison `name`, which gives booleans."""
    return lambda left, right: left.let(BIT.of(left.type.width), name, left.lift(right))


class Value:
    """An integer, a float, a boolean, or a vector of them. Integer division is unsigned."""

    def __init__(self, builder: Builder, type_: Type, term: Term) -> None:
        self.builder = builder
        self.type = type_
        self.term = term
        """The value in the data of :mod:`hibana.runtime.loops`."""

    def __bool__(self) -> bool:
        """Raises a TypeError: Python's ``if`` can't branch on a kernel's value."""
        raise TypeError(
            "a kernel's value is unknown while the kernel is built: use `select` or `when` instead of `if`"
        )

    __add__: ClassVar["_Operator"] = _arithmetic("add")
    __radd__: ClassVar["_Operator"] = __add__
    __sub__: ClassVar["_Operator"] = _arithmetic("sub")
    __mul__: ClassVar["_Operator"] = _arithmetic("mul")
    __rmul__: ClassVar["_Operator"] = __mul__
    __truediv__: ClassVar["_Operator"] = _arithmetic("div")
    __floordiv__: ClassVar["_Operator"] = _arithmetic("div")
    __mod__: ClassVar["_Operator"] = _arithmetic("rem")
    __and__: ClassVar["_Operator"] = _arithmetic("and")
    __or__: ClassVar["_Operator"] = _arithmetic("or")
    __xor__: ClassVar["_Operator"] = _arithmetic("xor")
    __lshift__: ClassVar["_Operator"] = _arithmetic("shl")
    __rshift__: ClassVar["_Operator"] = _arithmetic("shr")
    __lt__: ClassVar["_Operator"] = _comparison("lt")
    __le__: ClassVar["_Operator"] = _comparison("le")
    __gt__: ClassVar["_Operator"] = _comparison("gt")
    __ge__: ClassVar["_Operator"] = _comparison("ge")
    equals: ClassVar["_Operator"] = _comparison("eq")
    """Element-wise ``==``; false for NaN."""
    differs: ClassVar["_Operator"] = _comparison("ne")
    """Element-wise ``!=``; true for NaN."""

    def __rsub__(self, other: "Operand") -> "Value":
        """``other - self``."""
        return self.lift(other) - self

    def __rtruediv__(self, other: "Operand") -> "Value":
        """``other / self``."""
        return self.lift(other) / self

    def __neg__(self) -> "Value":
        """The negative of each float."""
        return self.let(self.type, "neg")

    def __abs__(self) -> "Value":
        """The absolute value of each float."""
        return self.call("fabs")

    def __invert__(self) -> "Value":
        """Each integer or boolean with all bits inverted."""
        return self ^ -1

    def select(self, yes: "Operand", no: "Operand") -> "Value":
        """`yes` where this boolean is true, else `no`; one of them must be a :class:`Value`."""
        if not isinstance(yes, Value):
            if not isinstance(no, Value):
                raise TypeError(f"yes or no must be a value of the kernel, got {yes!r} and {no!r}")
            yes = no.lift(yes)
        return self.let(yes.type, "select", yes, yes.lift(no))

    def smaller(self, other: "Operand") -> "Value":
        """The smaller of two integers."""
        return (self < other).select(self, other)

    def larger(self, other: "Operand") -> "Value":
        """The larger of two integers."""
        return (self > other).select(self, other)

    def popcount(self) -> "Value":
        """The number of set bits of each element."""
        return self.call("ctpop")

    def lowest_set_bit(self) -> "Value":
        """The position of the lowest set bit; the number of bits of the element if no bit is set."""
        return self.call("cttz", constant(self.builder, BIT, 0))

    def fused(self, factor: "Value", term: "Value") -> "Value":
        """``self * factor + term``, rounded once if the processor has an instruction for it, else twice."""
        return self.call("fmuladd", factor, term)

    def fma(self, factor: "Operand", term: "Operand") -> "Value":
        """``self * factor + term``, rounded once on every processor."""
        return self.call("fma", self.lift(factor), self.lift(term))

    def compressed(self, mask: "Value") -> "Value":
        """The elements where `mask` is true, moved to the front; the other elements are undefined."""
        return self.call("experimental.vector.compress", mask, self.undefined(self.type))

    def to(self, type_: Type) -> "Value":
        """Converts to elements of `type_`: integers are zero-extended or truncated, floats rounded."""
        target = type_.of(self.type.width)
        if target.bits == self.type.bits:
            return self
        return self.let(target, "extend" if target.bits > self.type.bits else "shorten")

    def signed_to(self, type_: Type) -> "Value":
        """This signed integer, sign-extended to `type_`."""
        return self.let(type_.of(self.type.width), "extend signed")

    def real(self, type_: Type) -> "Value":
        """This signed integer, converted to the nearest float of `type_`."""
        return self.let(type_.of(self.type.width), "real")

    def float_bits(self) -> "Value":
        """The bits of each float, reinterpreted as an integer of the same width."""
        type_ = Type(f"i{self.type.bits}", self.type.bits, self.type.width)
        return self.let(type_, "bits")

    def float_from_bits(self) -> "Value":
        """The bits of each integer, reinterpreted as a float of the same width."""
        type_ = {FLOAT.bits: FLOAT, DOUBLE.bits: DOUBLE}[self.type.bits].of(self.type.width)
        return self.let(type_, "bits")

    def word(self) -> "Value":
        """The bits of this vector as one integer; the first element takes the lowest bits."""
        bits = self.type.width * self.type.bits
        word = Type(f"i{bits}", bits)
        return self.let(word, "bits")

    def octets(self) -> "Value":
        """The bytes of each element, lowest first, as one vector of bytes."""
        type_ = BYTE.of(self.type.size * self.type.width)
        return self.let(type_, "bits")

    def mask(self, width: int) -> "Value":
        """The `width` lowest bits of this integer as a vector of booleans."""
        word = Type(f"i{width}", width)
        low = self if self.type.bits == width else self.let(word, "shorten")
        return low.let(BIT.of(width), "bits")

    def spread(self, width: int) -> "Value":
        """A vector with this scalar in each of `width` elements."""
        return self.let(self.type.of(width), "spread", lanes=[0] * width)

    def shuffled(self, other: "Value", lanes: Sequence[int]) -> "Value":
        """The elements `lanes` of the concatenation of this vector and `other`."""
        return self.let(self.type.of(len(lanes)), "shuffle", other, lanes=lanes)

    def part(self, first: int, count: int) -> "Value":
        """`count` elements of this vector, from element `first`."""
        return self.shuffled(self, range(first, first + count))

    def lane(self, lane: int) -> "Value":
        """The element `lane` of this vector."""
        return self.let(self.type.of(1), "extract", lanes=[lane])

    def with_lane(self, lane: int, value: "Value") -> "Value":
        """This vector with the element `lane` replaced by `value`."""
        return self.let(self.type, "insert", value, lanes=[lane])

    def sum(self) -> "Value":
        """The sum of the elements; of floats in an unspecified order."""
        return self.let(self.type.of(1), "sum")

    def call(self, intrinsic: str, *arguments: "Value") -> "Value":
        """Calls LLVM's `intrinsic` for this type with this value and `arguments` of the same type."""
        return self.let(self.type, intrinsic, *arguments)

    def lift(self, other: "Operand") -> "Value":
        """`other` as a value of this type."""
        if isinstance(other, Value):
            if other.type != self.type:
                raise TypeError(f"operands of a kernel must have one type, got {self.type} and {other.type}")
            return other
        return constant(self.builder, self.type, other)

    def undefined(self, type_: Type) -> "Value":
        """An undefined value of `type_`."""
        return Value(self.builder, type_, Undefined(type_))

    def let(self, type_: Type, operation: str, *others: "Value", lanes: Sequence[int] = ()) -> "Value":
        """The result, of `type_`, of an operation of :class:`~hibana.runtime.loops.Let`."""
        operands = [value.term for value in (self, *others)]
        return Value(self.builder, type_, self.builder.let(type_, operation, *operands, lanes=tuple(lanes)))

    def named(self, name: str) -> "Value":
        """This value, which C code stores in a constant called `name`."""
        result = Result(self.type)
        self.builder.add(Name(result, self.term, name))
        return Value(self.builder, self.type, result)


Operand = Value | int | float
_Operator = Callable[[Value, Operand], Value]


def constant(builder: Builder, type_: Type, number: float) -> Value:
    """The constant `number` of `type_`, in each lane."""
    return Value(builder, type_, Constant(type_, number))


def value_of(builder: Builder, type_: Type, operand: Operand) -> Value:
    """`operand` if it is a value of the kernel, else the constant of `type_`."""
    return operand if isinstance(operand, Value) else constant(builder, type_, operand)


def float_bits(number: float) -> int:
    """The bits of `number` as float32; a kernel reads them by ``value.to(INT).float_from_bits()``.

    Raises OverflowError if `number` is finite and too large for float32.
    """
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits
