"""What values of a kernel are: numbers, truth values, and vectors of them."""

from dataclasses import dataclass

__all__ = ["BIT", "BYTE", "DOUBLE", "FLOAT", "INT", "LONG", "SHORT", "Type"]


@dataclass(frozen=True)
class Type:
    """What a value is: `lanes` elements of one kind, or one of them."""

    element: str
    """LLVM's name of an element: ``i1`` a truth value, ``i64`` an integer, ``float``."""
    bits: int
    """Bits of an element."""
    lanes: int = 1

    def of(self, lanes: int) -> "Type":
        """The vector of `lanes` such elements."""
        return Type(self.element, self.bits, lanes)

    @property
    def real(self) -> bool:
        """Whether an element is a floating-point number."""
        return not self.element.startswith("i")

    @property
    def size(self) -> int:
        """Bytes of an element in memory."""
        return -(-self.bits // 8)

    @property
    def mangled(self) -> str:
        """As the name of an intrinsic has it: ``v16f32``."""
        element = f"f{self.bits}" if self.real else self.element
        return element if self.lanes == 1 else f"v{self.lanes}{element}"

    def __str__(self) -> str:
        return self.element if self.lanes == 1 else f"<{self.lanes} x {self.element}>"


BIT, BYTE, SHORT, INT, LONG = (Type(f"i{bits}", bits) for bits in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = Type("float", 32), Type("double", 64)
