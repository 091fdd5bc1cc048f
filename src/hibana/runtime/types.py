"""Types of the values in a kernel: integers, floats, booleans, and vectors of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Type:
    """The type of a scalar, or of a vector of `width` elements."""

    element: str
    """LLVM's name of the element type, such as ``i1`` for booleans, ``i64`` or ``float``."""
    bits: int
    """Number of bits of an element."""
    width: int = 1

    def of(self, width: int) -> "Type":
        """The vector type with `width` elements of this type."""
        return Type(self.element, self.bits, width)

    @property
    def real(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return not self.element.startswith("i")

    @property
    def size(self) -> int:
        """Size of an element in memory, in bytes."""
        return -(-self.bits // 8)

    @property
    def mangled(self) -> str:
        """The type in the name of an LLVM intrinsic, such as ``v16f32``."""
        element = f"f{self.bits}" if self.real else self.element
        return element if self.width == 1 else f"v{self.width}{element}"

    def __str__(self) -> str:
        """The type in LLVM's notation, such as ``<16 x float>``."""
        return self.element if self.width == 1 else f"<{self.width} x {self.element}>"


BIT, BYTE, SHORT, INT, LONG = (Type(f"i{bits}", bits) for bits in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = Type("float", 32), Type("double", 64)
