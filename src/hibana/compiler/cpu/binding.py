"""The arguments of a kernel by name: sizes are bound once a shape, addresses packed at each launch."""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

Pack = Callable[[Sequence[int]], bytes]
"""From values, in an order that was agreed on once, to the argument block of a kernel."""


class Binding:
    """The `arguments` that a kernel declares, some of them `known`; undeclared names are left out.

    >>> pack = Binding(("steps", "input", "outputs"), {"steps": 3}).pack_named(("outputs", "input"))
    >>> struct.unpack("3q", pack((8, 16)))
    (3, 16, 8)
    """

    def __init__(self, arguments: Sequence[str], known: Mapping[str, int]) -> None:
        self.arguments = tuple(arguments)
        self.known = dict(known)

    def pack_named(self, names: Sequence[str]) -> Pack:
        """A function that packs the values of `names`, given in that order, with what is known.

        Raises:
            TypeError: if the kernel declares an argument that is neither known nor among them.
        """
        place = {name: i for i, name in enumerate((*self.known, *names))}
        missing = [name for name in self.arguments if name not in place]
        if missing:
            raise TypeError(f"a kernel's arguments {missing} are neither known nor given")
        known = tuple(self.known.values())
        chosen = itemgetter(*(place[name] for name in self.arguments))
        pack = struct.Struct(f"{len(self.arguments)}q").pack
        return lambda values: pack(*chosen((*known, *values)))
