"""The memory of a program in C: a struct, in which arrays share unions."""

from dataclasses import dataclass

__all__ = ["SIZES", "Memory", "index_kind"]

SIZES = {
    **{"double": 8, "int64_t": 8, "float": 4, "int32_t": 4, "uint32_t": 4},
    **{"int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1},
}
"""Bytes of C's types, and their alignment."""


def index_kind(count: int) -> str:
    """C's smallest type that holds the numbers below `count`."""
    return next(kind for kind in ("uint8_t", "uint16_t", "uint32_t") if count <= 1 << 8 * SIZES[kind])


@dataclass(frozen=True)
class _Array:
    name: str
    kind: str
    size: int
    """Number of elements; 0 for a number that is not in an array."""
    last: int = 0
    """The last node of a step that reads it."""

    @property
    def bytes(self) -> int:
        return SIZES[self.kind] * max(1, self.size)

    @property
    def declared(self) -> str:
        return f"{self.kind} {self.name};" if self.size == 0 else f"{self.kind} {self.name}[{self.size}];"


class Memory:
    """The arrays of the struct; arrays that are needed at different times of a step share a union."""

    def __init__(self) -> None:
        self._lasting: list[_Array] = []
        self._unions: list[list[_Array]] = []

    def lasting(self, name: str, kind: str, size: int = 0) -> str:
        """An array, or a single number, that is kept from step to step; returns its expression."""
        self._lasting.append(_Array(name, kind, size))
        return f"net->{name}"

    def between(self, name: str, kind: str, size: int, first: int, last: int) -> str:
        """An array that is needed from node `first` to node `last` of a step; returns its expression."""
        fitting = [at for at, union in enumerate(self._unions) if all(other.last < first for other in union)]
        at = fitting[0] if fitting else len(self._unions)
        self._unions += [] if fitting else [[]]
        self._unions[at].append(_Array(name, kind, size, last))
        return f"net->shared{at}.{name}"

    def _fields(self) -> list[tuple[int, int, list[str]]]:
        """Alignment, bytes and lines of each field, the widest first."""
        fields = [(SIZES[array.kind], array.bytes, [array.declared]) for array in self._lasting]
        for at, union in enumerate(self._unions):
            lines = ["union {", *(f"    {array.declared}" for array in union), f"}} shared{at};"]
            size = max(array.bytes for array in union)
            fields.append((max(SIZES[array.kind] for array in union), size, lines))
        return sorted(fields, key=lambda field: -field[0])

    def fields(self) -> list[str]:
        """The fields of the struct."""
        return [line for _, _, lines in self._fields() for line in lines]

    def bytes(self) -> int:
        """The size of the struct."""
        fields, total = self._fields(), 0
        for alignment, size, _ in fields:
            total = _up(total, alignment) + _up(size, alignment)
        return _up(total, fields[0][0])


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
