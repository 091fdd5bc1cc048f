"""Typed values of the kernel under construction, with Python operators that emit LLVM IR.

``a + b`` appends an instruction to the function that `a` belongs to and returns its result. Floating-point
operations are never contracted or reassociated, except by :meth:`Value.fused`.
"""

import struct
from collections.abc import Callable, Sequence
from typing import ClassVar

from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, Type
from hibana.runtime.writer import Writer


class Group:
    """A group of integer arguments of a kernel: a subclass annotates one :class:`Value` for each name."""

    def __init__(self, **values: "Value") -> None:
        self.__dict__.update(values)


def _arithmetic(name: str) -> "_Operator":
    """The operator of LLVM's instruction `name`, with the prefix ``f`` for floats."""
    return lambda left, right: left._binary(f"f{name}" if left.type.real else name, left.type, right)


def _comparison(float_predicate: str, integer_predicate: str) -> "_Operator":
    """The comparison with LLVM's predicates for floats and for integers."""

    def compare(left: "Value", right: "Operand") -> "Value":
        """The element-wise comparison, as booleans."""
        name = f"fcmp {float_predicate}" if left.type.real else f"icmp {integer_predicate}"
        return left._binary(name, BIT.of(left.type.width), right)

    return compare


class Value:
    """An integer, a float, a boolean, or a vector of them. Integer division is unsigned."""

    def __init__(self, writer: Writer, type_: Type, text: str) -> None:
        self.writer = writer
        self.type = type_
        self.text = text

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
    __floordiv__: ClassVar["_Operator"] = _arithmetic("udiv")
    __mod__: ClassVar["_Operator"] = _arithmetic("urem")
    __and__: ClassVar["_Operator"] = _arithmetic("and")
    __or__: ClassVar["_Operator"] = _arithmetic("or")
    __xor__: ClassVar["_Operator"] = _arithmetic("xor")
    __lshift__: ClassVar["_Operator"] = _arithmetic("shl")
    __rshift__: ClassVar["_Operator"] = _arithmetic("lshr")
    __lt__: ClassVar["_Operator"] = _comparison("olt", "slt")
    __le__: ClassVar["_Operator"] = _comparison("ole", "sle")
    __gt__: ClassVar["_Operator"] = _comparison("ogt", "sgt")
    __ge__: ClassVar["_Operator"] = _comparison("oge", "sge")
    equals: ClassVar["_Operator"] = _comparison("oeq", "eq")
    """Element-wise ``==``; false for NaN."""
    differs: ClassVar["_Operator"] = _comparison("une", "ne")
    """Element-wise ``!=``; true for NaN."""

    def __rsub__(self, other: "Operand") -> "Value":
        """``other - self``."""
        return self.lift(other) - self

    def __rtruediv__(self, other: "Operand") -> "Value":
        """``other / self``."""
        return self.lift(other) / self

    def __neg__(self) -> "Value":
        """The negative of each float."""
        return self.new(self.type, f"fneg {self}")

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
        text = self.writer.select(self.type, self.text, yes.type, yes.text, yes.lift(no).text)
        return Value(self.writer, yes.type, text)

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
        return self.call("cttz", constant(self.writer, BIT, 0))

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
        extend, reduce = ("fpext", "fptrunc") if self.type.real else ("zext", "trunc")
        return self._convert(extend if target.bits > self.type.bits else reduce, target)

    def signed_to(self, type_: Type) -> "Value":
        """This signed integer, sign-extended to `type_`."""
        return self._convert("sext", type_.of(self.type.width))

    def real(self, type_: Type) -> "Value":
        """This signed integer, converted to the nearest float of `type_`."""
        return self._convert("sitofp", type_.of(self.type.width))

    def float_bits(self) -> "Value":
        """The bits of each float, reinterpreted as an integer of the same width."""
        type_ = Type(f"i{self.type.bits}", self.type.bits, self.type.width)
        return self.new(type_, f"bitcast {self} to {type_}")

    def float_from_bits(self) -> "Value":
        """The bits of each integer, reinterpreted as a float of the same width."""
        type_ = {FLOAT.bits: FLOAT, DOUBLE.bits: DOUBLE}[self.type.bits].of(self.type.width)
        return self.new(type_, f"bitcast {self} to {type_}")

    def word(self) -> "Value":
        """The bits of this vector as one integer; the first element takes the lowest bits."""
        bits = self.type.width * self.type.bits
        word = Type(f"i{bits}", bits)
        return self.new(word, f"bitcast {self} to {word}")

    def octets(self) -> "Value":
        """The bytes of each element, lowest first, as one vector of bytes."""
        type_ = BYTE.of(self.type.size * self.type.width)
        return self.new(type_, f"bitcast {self} to {type_}")

    def mask(self, width: int) -> "Value":
        """The `width` lowest bits of this integer as a vector of booleans."""
        word = Type(f"i{width}", width)
        low = self if self.type.bits == width else self.new(word, f"trunc {self} to {word}")
        return self.new(BIT.of(width), f"bitcast {low} to {BIT.of(width)}")

    def spread(self, width: int) -> "Value":
        """A vector with this scalar in each of `width` elements."""
        type_ = self.type.of(width)
        vector = self.new(type_, f"insertelement {type_} poison, {self}, i32 0")
        return vector.shuffled(vector, [0] * width)

    def shuffled(self, other: "Value", lanes: Sequence[int]) -> "Value":
        """The elements `lanes` of the concatenation of this vector and `other`."""
        indices = f"<{', '.join([f'i32 {lane}' for lane in lanes])}>" if any(lanes) else "zeroinitializer"
        type_ = self.type.of(len(lanes))
        return self.new(type_, f"shufflevector {self}, {other}, <{len(lanes)} x i32> {indices}")

    def part(self, first: int, count: int) -> "Value":
        """`count` elements of this vector, from element `first`."""
        return self.shuffled(self, range(first, first + count))

    def lane(self, lane: int) -> "Value":
        """The element `lane` of this vector."""
        return self.new(self.type.of(1), f"extractelement {self}, i32 {lane}")

    def with_lane(self, lane: int, value: "Value") -> "Value":
        """This vector with the element `lane` replaced by `value`."""
        return self.new(self.type, f"insertelement {self}, {value}, i32 {lane}")

    def sum(self) -> "Value":
        """The sum of the elements; of floats in an unspecified order."""
        element = self.type.of(1)
        flags, start = ("reassoc", f"{element} -0.0, ") if self.type.real else ("", "")
        name = f"llvm.vector.reduce.{'fadd' if self.type.real else 'add'}.{self.type.mangled}"
        return self.new(element, f"call {flags} {element} @{name}({start}{self})")

    def call(self, intrinsic: str, *arguments: "Value") -> "Value":
        """Calls LLVM's `intrinsic` for this type with this value and `arguments` of the same type."""
        operands = ", ".join(map(str, (self, *arguments)))
        return self.new(self.type, f"call {self.type} @llvm.{intrinsic}.{self.type.mangled}({operands})")

    def lift(self, other: "Operand") -> "Value":
        """`other` as a value of this type."""
        if isinstance(other, Value):
            if other.type != self.type:
                raise TypeError(f"operands of a kernel must have one type, got {self.type} and {other.type}")
            return other
        return constant(self.writer, self.type, other)

    def undefined(self, type_: Type) -> "Value":
        """An undefined value of `type_`."""
        return Value(self.writer, type_, "undef")

    def new(self, type_: Type, instruction: str) -> "Value":
        """The result of LLVM's `instruction`, of type `type_`."""
        return Value(self.writer, type_, self.writer.let("", instruction))

    def named(self, name: str) -> "Value":
        """This value, which C code stores in a constant called `name`."""
        return Value(self.writer, self.type, self.writer.name(self.type, self.text, name))

    def _binary(self, name: str, result: Type, other: "Operand") -> "Value":
        """The result, of type `result`, of LLVM's instruction `name` on this value and `other`."""
        text = self.writer.binary(name, self.type, self.text, self.lift(other).text)
        return Value(self.writer, result, text)

    def _convert(self, instruction: str, target: Type) -> "Value":
        """This value, converted to the type `target` by LLVM's `instruction`."""
        return Value(self.writer, target, self.writer.convert(instruction, self.type, target, self.text))

    def __str__(self) -> str:
        """The value in LLVM's notation, with its type."""
        return f"{self.type} {self.text}"


Operand = Value | int | float
_Operator = Callable[[Value, Operand], Value]


def constant(writer: Writer, type_: Type, number: float) -> Value:
    """The constant `number` of `type_`, in each lane."""
    return Value(writer, type_, writer.constant(type_, number))


def float_bits(number: float) -> int:
    """The bits of `number` as float32; a kernel reads them by ``value.to(INT).float_from_bits()``.

    Raises OverflowError if `number` is finite and too large for float32.
    """
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits
