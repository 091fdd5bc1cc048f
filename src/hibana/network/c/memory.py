"""Where a network's numbers lie while it runs: a struct, in which what lives at other times shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["FOREVER", "SIZES", "Memory", "index_kind"]

SIZES = {
    **{"double": 8, "int64_t": 8, "float": 4, "int32_t": 4, "uint32_t": 4},
    **{"int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1},
}
"""Bytes of C's types, which are their alignment too."""

FOREVER = 1 << 30


def index_kind(count: int) -> str:
    """C's smallest type that holds the numbers below `count`."""
    return next(kind for kind in ("uint8_t", "uint16_t", "uint32_t") if count <= 1 << 8 * SIZES[kind])


@dataclass
class _Array:
    name: str
    kind: str
    size: int
    born: int
    last: int

    @property
    def bytes(self) -> int:
        return SIZES[self.kind] * max(1, self.size)

    @property
    def declared(self) -> str:
        """Its declaration."""
        return f"{self.kind} {self.name};" if self.size == 0 else f"{self.kind} {self.name}[{self.size}];"


@dataclass
class Memory:
    """The arrays of the struct; those that live from one node to another share their memory."""

    arrays: list[_Array] = field(default_factory=list)
    shared: list[list[_Array]] = field(default_factory=list)

    def lasting(self, name: str, kind: str, size: int) -> str:
        """An array that keeps its numbers from step to step; gives its expression."""
        self.arrays.append(_Array(name, kind, size, -1, FOREVER))
        return f"net->{name}"

    def counter(self, name: str, kind: str) -> str:
        """One number; gives its expression."""
        self.arrays.append(_Array(name, kind, 0, -1, FOREVER))
        return f"net->{name}"

    def between(self, name: str, kind: str, size: int, born: int, last: int) -> str:
        """An array that is needed from node `born` to node `last` of a step; gives its expression."""
        array = _Array(name, kind, size, born, last)
        for at, sharing in enumerate(self.shared):
            if all(other.last < born for other in sharing):
                sharing.append(array)
                return f"net->shared{at}.{name}"
        self.shared.append([array])
        return f"net->shared{len(self.shared) - 1}.{name}"

    def fields(self) -> list[str]:
        """The fields of the struct, the widest first."""
        found = [(max(SIZES[a.kind] for a in s), self._union(i, s)) for i, s in enumerate(self.shared)]
        found += [(SIZES[a.kind], [a.declared]) for a in self.arrays]
        return [line for _, lines in sorted(found, key=lambda f: -f[0]) for line in lines]

    def bytes(self) -> int:
        """The size of the struct."""
        parts = [(max(SIZES[a.kind] for a in s), max(a.bytes for a in s)) for s in self.shared]
        parts += [(SIZES[a.kind], a.bytes) for a in self.arrays]
        total, widest = 0, max(alignment for alignment, _ in parts)
        for alignment, size in sorted(parts, key=lambda part: -part[0]):
            total = _up(total, alignment) + _up(size, alignment)
        return _up(total, widest)

    @staticmethod
    def _union(at: int, arrays: Sequence[_Array]) -> list[str]:
        return ["union {", *(f"    {a.declared}" for a in arrays), f"}} shared{at};"]


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
