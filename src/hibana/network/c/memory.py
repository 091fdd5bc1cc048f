"""The memory of a C program: the fields of a struct, whose short-lived arrays share unions."""

from dataclasses import dataclass

from hibana.runtime.loops import Array

__all__ = ["SIZES", "Memory", "index_type"]

SIZES = {
    **{"double": 8, "int64_t": 8, "float": 4, "int32_t": 4, "uint32_t": 4},
    **{"int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1},
}
"""Size and alignment of C's types in bytes."""


def index_type(count: int) -> str:
    """C's smallest unsigned type that holds the numbers below `count`."""
    return next(kind for kind in ("uint8_t", "uint16_t", "uint32_t") if count <= 1 << 8 * SIZES[kind])


@dataclass(frozen=True)
class _Field:
    """A field of the struct or of a union: an array, or one number if `count` is 0."""

    name: str
    kind: str
    """C's type of an element."""
    count: int
    last_user: int = 0
    """Index of the last node that reads it in a step."""

    @property
    def bytes(self) -> int:
        """Size of the field in bytes; a scalar has the count 0."""
        return SIZES[self.kind] * max(1, self.count)

    @property
    def declaration(self) -> str:
        """The declaration of the field in a struct of C."""
        return f"{self.kind} {self.name}{f'[{self.count}]' * bool(self.count)};"


class Memory:
    """The fields of the struct; arrays that are used at different times of a step share a union."""

    def __init__(self) -> None:
        self._fields: list[_Field] = []
        self._unions: list[list[_Field]] = []

    def add(self, name: str, kind: str, count: int = 0) -> Array:
        """Adds an array, or a number, that keeps its values from step to step."""
        self._fields.append(_Field(name, kind, count))
        return Array(None, name=name, owner="net->", kind=kind, is_number=count == 0)

    def add_shared(self, name: str, kind: str, count: int, first: int, last: int) -> Array:
        """Adds an array that is used from node `first` to node `last` of a step."""
        is_free = [all(array.last_user < first for array in union) for union in self._unions]
        if not any(is_free):
            self._unions.append([])
            is_free.append(True)
        index = is_free.index(True)
        self._unions[index].append(_Field(name, kind, count, last))
        return Array(None, name=name, owner=f"net->shared{index}.", kind=kind)

    def fields(self) -> list[tuple[str, str, int]]:
        """The name, C's type and the length of each array; the length of a number is 0."""
        shared = [array for union in self._unions for array in union]
        return [(field.name, field.kind, field.count) for field in (*self._fields, *shared)]

    def _layout(self) -> list[tuple[int, int, list[str]]]:
        """Alignment, bytes and declaration of each field of the struct, the widest alignment first."""
        layout = [(SIZES[field.kind], field.bytes, [field.declaration]) for field in self._fields]
        for index, union in enumerate(self._unions):
            lines = ["union {", *(f"    {array.declaration}" for array in union), f"}} shared{index};"]
            size = max(array.bytes for array in union)
            layout.append((max(SIZES[array.kind] for array in union), size, lines))
        return sorted(layout, key=lambda field: -field[0])

    def declarations(self) -> list[str]:
        """The lines that declare the fields of the struct."""
        return [line for _, _, lines in self._layout() for line in lines]

    def bytes(self) -> int:
        """The size of the struct."""
        layout = self._layout()  # each field begins at a multiple of its own alignment
        total = sum(_round_up(size, alignment) for alignment, size, _ in layout)
        return _round_up(total, layout[0][0])


def _round_up(size: int, alignment: int) -> int:
    """`size`, rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
