"""The four columns of events: what they are called, and their order in arrays that do not name them."""

from collections.abc import Iterable
from itertools import permutations
from typing import Any

import numpy as np

__all__ = ["MOST_SIDE", "NAMES", "check", "named", "order"]

NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""What the columns of a recording are called."""
MOST_SIDE = 2048
"""Pixels of a sensor's side, at most; the largest event cameras have 1,280."""
USUAL = ("txyp", "xytp", "xypt")
"""Orders that are preferred where the values allow others too, as those of one row of pixels do."""


def named(columns: Iterable[str]) -> list[str]:
    """Which of the names `columns` are those of t, x, y and p, in this order.

    Raises:
        ValueError: if one is not there.
    """
    names = {str(name).lower(): name for name in columns}
    kept = []
    for wanted, called in NAMES.items():
        found = [names[name] for name in called if name in names]
        if not found:
            raise ValueError(f"there is no {wanted!r} among {', '.join(names)}")
        kept.append(found[0])
    return kept


def check(columns: str) -> str:
    """`columns`, an order of the letters t, x, y and p.

    Raises:
        ValueError: if it is none.
    """
    if sorted(columns) != sorted("txyp"):
        raise ValueError(
            f"event_columns must be an order of t, x, y and p, such as xytp; got {columns[:20]!r}"
        )
    return columns


def order(recordings: Iterable["np.ndarray[Any, Any]"]) -> str:
    """The order of the columns of `recordings`, ``[events, 4]`` each, one for all: ``txyp``, ``xytp``, ...

    Times do not decrease, polarities have two values of -1, 0 and 1, and places are whole numbers below
    :data:`MOST_SIDE`, x before y. Where no column grows that could be the time, it is the one with values
    that are no places.

    Raises:
        ValueError: if the values allow no order, or several.
    """
    grows, place, polar = (np.ones(4, bool) for _ in range(3))
    seen: list[set[float]] = [set() for _ in range(4)]
    for events in recordings:
        grows &= (np.diff(events, axis=0) >= 0).all(axis=0)
        place &= ((events >= 0) & (events < MOST_SIDE) & (events == np.floor(events))).all(axis=0)
        polar &= np.isin(events, (-1, 0, 1)).all(axis=0)
        for k in np.flatnonzero(polar):
            seen[k] |= set(np.unique(events[:, k]).tolist())
    polar &= np.array([len(values) <= 2 for values in seen])
    allowed: list[str] = []
    for is_time in (grows, ~place):
        for t, p in permutations(range(4), 2):
            x, y = sorted({0, 1, 2, 3} - {t, p})
            if is_time[t] and polar[p] and place[x] and place[y]:
                letters = {t: "t", p: "p", x: "x", y: "y"}
                allowed.append("".join(letters[k] for k in range(4)))
        if allowed:
            break
    found = [each for each in USUAL if each in allowed] or allowed
    if len(found) == 1:
        return found[0]
    why = f"allow the orders {', '.join(found)}" if found else "allow no order: a time that grows, a polarity"
    why += "" if found else f" of two values, and places that are whole numbers below {MOST_SIDE:,}"
    raise ValueError(
        f"events without names of their columns must be of one order; their values {why}. Say which it is, "
        f"such as event_columns xytp, or name the columns in the files"
    )
