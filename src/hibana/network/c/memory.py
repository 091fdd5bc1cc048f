"""Where a network's numbers lie while it runs: a struct, in which what lives at other times shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node
from hibana.network.sliding import channels_last

__all__ = ["SIZES", "Held", "Memory", "index_kind"]

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
class Held:
    """A node's numbers in the program."""

    node: Node
    places: Tensor
    """Which number of PyTorch's lies at each place."""
    kind: str = ""
    """C's type of its numbers."""
    numbers: str = ""
    """The array of them; of spikes, of their flags, which are 0 and 1."""
    spikes: str = ""
    """The array of the places that spiked, in rising order; empty if they are no spikes."""
    count: str = ""
    """How many spiked."""
    truths: bool = False
    """Whether they are all 0 or 1."""

    def channels_last(self, shape: tuple[int, ...]) -> bool:
        """Whether an image of `shape` lies so, rather than channel by channel.

        Raises:
            Unsupported: if it lies in neither way.
        """
        if torch.equal(self.places, channels_last(shape)):
            return True
        if torch.equal(self.places, torch.arange(self.node.size, dtype=torch.int64, device="cpu")):
            return False
        raise Unsupported(f"the numbers of layer {self.node.name!r} are in no order that C reads an image in")


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
