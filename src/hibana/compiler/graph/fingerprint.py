"""The fingerprint of a cell: cells with equal fingerprints share one compiled program.

It covers all that a step can read, what its cell holds and what its code names, but the values of the cell's
tensors, which are arguments of kernels. What can change unseen is refused.
"""

import random
import sys
from collections.abc import Hashable

from hibana.cells import Cell
from hibana.cells.base import INTERNAL, Internal
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import Walk
from hibana.compiler.graph.watch import unchanged


def followed(cell: Cell) -> Walk:
    """All that the step of `cell` can read, cached until any of it changes.

    Raises:
        Unsupported: if it can read what can change unseen, or has hooks.
    """
    internal: Internal = getattr(cell, INTERNAL)
    last: Walk | None = internal.followed
    if last is None or last.look(cell) != last.snapshot or not unchanged(last.items, last.watched):
        last = internal.followed = Walk(cell)
        internal.calls = None
    if last.refused:
        raise Unsupported(last.refused)
    return last


def random_state() -> Hashable:
    """The state of the global random generators of Python and NumPy."""
    # NumPy loads them when they are first touched: until then nobody has drawn any.
    numbers = sys.modules.get("numpy.random")
    drawn = numbers.get_state()[1:3] if numbers else ((), 0)
    return random.getstate(), tuple(drawn[0]), drawn[1]
