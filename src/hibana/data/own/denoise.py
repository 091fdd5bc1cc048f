"""A filter of background activity: an event stays if a neighbouring pixel had one shortly before."""

from typing import Any, final

import numpy as np

__all__ = ["Filter", "supported"]

_AROUND = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dx, dy) != (0, 0)]


def supported(events: "np.ndarray[Any, Any]", within: float) -> "np.ndarray[Any, Any]":
    """Which of `events` have one before them, at most `within` earlier, on one of the eight pixels around.

    Polarities do not matter, and neither does what the pixel itself emitted.

    Args:
        events: ``[events, 4]``: time, column, row, polarity, in order of time.
        within: in the unit of time of `events`.

    Source: Delbruck (2008), *Frame-free dynamic digital vision* (the background activity filter).

    >>> import numpy as np
    >>> supported(np.array([[0, 5, 5, 1], [3, 6, 5, 0], [9, 6, 6, 1], [9, 1, 1, 1]]), 4.0)
    array([False,  True, False, False])
    """
    count = len(events)
    time, x, y = events[:, 0], events[:, 1].astype(np.int64) + 1, events[:, 2].astype(np.int64) + 1
    width, place = int(x.max(initial=0)) + 2, np.arange(count)
    pixel = y * width + x
    ordered = np.sort(pixel * count + place)  # by pixel, then by time
    found = np.zeros(count, bool)
    for dx, dy in _AROUND:
        around = pixel + dy * width + dx
        last = ordered[np.searchsorted(ordered, around * count + place) - 1]  # before it, if of that pixel
        before = last % count if count else last
        of_it = (last // max(1, count) == around) & (before < place)
        found |= of_it & (time - time[before] <= within)
    return found


@final
class Filter:
    """The same, event by event: :meth:`keeps` says of each what :func:`supported` says of it.

    Args:
        height: of the sensor.
        width: of the sensor.
        within: in the unit of time of the events.
    """

    def __init__(self, height: int, width: int, within: float) -> None:
        self.within = within
        self.last = np.full((height + 2, width + 2), -np.inf)
        """When each pixel had its last event, and a border of pixels that have none."""

    def keeps(self, time: float, x: int, y: int) -> bool:
        """Whether the event at column `x` and row `y` is supported by those before it."""
        around = self.last[y : y + 3, x : x + 3].copy()
        around[1, 1] = -np.inf
        self.last[y + 1, x + 1] = time
        return bool(time - around.max() <= self.within)
