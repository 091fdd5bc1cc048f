"""The fingerprint of a cell: cells with equal fingerprints share one compiled program.

It covers all that a step can read, what its cell holds and what its code names, but the values of the cell's
tensors, which are arguments of kernels. What can change unseen is refused.
"""

import random
import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import nn

from hibana.cells import Cell
from hibana.cells.base import INTERNAL, Internal
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import Walk
from hibana.compiler.graph.watch import Item, Look, Watch, unchanged
from hibana.compiler.shared import Bounded

PROGRAMS = 16
"""Maximum programs per cell, which differ in backend, shape or dtype."""


class Followed(NamedTuple):
    """All that the step of a cell can read."""

    key: tuple[Hashable, ...]
    """The fingerprint."""
    refused: str
    """Why no program can serve the cell, or ``""``."""
    unguarded: str
    """A number whose change torch.compile would not see, or ``""``."""
    plain: bool
    """Whether only setting an attribute can change what the cell itself holds."""
    look: Look
    """A snapshot function of the cell itself, and what it gave."""
    seen: Hashable
    items: tuple[Item, ...]
    """With `watched`, snapshots of everything else."""
    watched: tuple[Watch, ...]
    uncopied: tuple[object, ...]
    """Objects that a copy of the cell must share with it to read the same."""
    served: dict[Hashable, Any]
    """Programs that have served the cell, found without the key."""
    alive: tuple[object, ...]
    """Objects that are kept alive, since `watched` compares identities."""


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
    """All that the step of `cell` can read, cached until any of it changes.

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
    """The state of the global random generators of Python and NumPy."""
    # NumPy loads them when they are first touched: until then nobody has drawn any.
    numbers = sys.modules.get("numpy.random")
    drawn = numbers.get_state()[1:3] if numbers else ((), 0)
    return random.getstate(), tuple(drawn[0]), drawn[1]
