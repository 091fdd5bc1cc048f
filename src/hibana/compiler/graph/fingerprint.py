"""The fingerprint of a cell: cells with equal fingerprints share one compiled program.

A step is read once, so all that it can read must be known: what its cell holds, and what its code names. The
values of the cell's tensors are left out: they are arguments of a kernel. What can change unseen is refused,
never guessed (:mod:`hibana.compiler.graph.walk`).
"""

import random
import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import nn

from hibana.cells import Cell
from hibana.cells.base import INTERNAL, Internal
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import NOT_HYPER, Walk
from hibana.compiler.graph.watch import Item, Look, Watch, held, hooked, is_fixed, unchanged
from hibana.compiler.shared import Bounded

__all__ = [
    "NOT_HYPER",
    "Followed",
    "follow",
    "followed",
    "held",
    "hooked",
    "is_fixed",
    "random_state",
    "unchanged",
]

PROGRAMS = 16
"""Programs that one cell keeps, which differ in backend, shape or dtype."""


class Followed(NamedTuple):
    """All that the step of a cell can read."""

    key: tuple[Hashable, ...]
    """Equal for cells that one program serves."""
    refused: str
    """Why no program can serve the cell; empty, if one can."""
    unguarded: str
    """A number that torch.compile would not see change; empty, if there is none."""
    plain: bool
    """Whether nothing but setting an attribute can change what the cell itself holds."""
    look: Look
    """The look at the cell itself, which tells with `seen` whether that has changed."""
    seen: Hashable
    items: tuple[Item, ...]
    watched: tuple[Watch, ...]
    """With `items`, what tells whether anything else has changed."""
    uncopied: tuple[object, ...]
    """What a copy of the cell that reads the same must have itself, not a copy of it."""
    served: dict[Hashable, Any]
    """Programs that have served it, found without a look at the key."""
    alive: tuple[object, ...]
    """What was followed: the looks of `watched` are of identities."""


def follow(module: nn.Module) -> Followed:
    """All that a step of `module` can read now."""
    walk, refused = Walk(), ""
    try:
        walk.run(module)
    except Unsupported as reason:
        refused = str(reason)
    look = walk.look()
    return Followed(
        key=tuple(walk.key),
        refused=refused,
        unguarded=walk.unguarded,
        plain=walk.is_plain(),
        look=look,
        seen=look(module),
        items=tuple(walk.items()),
        watched=tuple(walk.watched()),
        uncopied=tuple(walk.uncopied()),
        served=Bounded(PROGRAMS),
        alive=tuple(walk.alive),
    )


def followed(cell: Cell) -> Followed:
    """All that the step of `cell` can read, remembered until any of it changes.

    Raises:
        Unsupported: if it can read what can change unseen, or has hooks.
    """
    own: Internal = getattr(cell, INTERNAL)
    found: Followed | None = own.followed
    if found is None or found.look(cell) != found.seen or not unchanged(found.items, found.watched):
        found = own.followed = follow(cell)
        own.calls = None
    if found.refused:
        raise Unsupported(found.refused)
    return found


def random_state() -> Hashable:
    """The state of the generators of random numbers that Python and NumPy share among all."""
    # NumPy loads them when they are first touched: until then nobody has drawn any.
    numbers = sys.modules.get("numpy.random")
    drawn = numbers.get_state()[1:3] if numbers else ((), 0)
    return random.getstate(), tuple(drawn[0]), drawn[1]
