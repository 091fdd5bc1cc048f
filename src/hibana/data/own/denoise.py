"""Background activity filter: an event is kept if a neighbouring pixel had one shortly before."""

import math
from typing import Any, final

import numpy as np

__all__ = ["Filter", "supported"]


@final
class Filter:
    """Decides event by event; polarities, and earlier events of the same pixel, do not matter.

    Args:
        height: of the sensor.
        width: of the sensor.
        within: the longest time since an event of one of the eight neighbours, in the unit of the events.

    Source: Delbruck (2008), *Frame-free dynamic digital vision*.
    """

    def __init__(self, height: int, width: int, within: float) -> None:
        self.within = within
        self.last = [[-math.inf] * (width + 2) for _ in range(height + 2)]
        """The time of each pixel's last event, with a border of one pixel."""

    def keeps(self, time: float, x: int, y: int) -> bool:
        """Whether to keep the next event, at column `x` and row `y`."""
        above, row, below = self.last[y : y + 3]
        latest = max(*above[x : x + 3], row[x], row[x + 2], *below[x : x + 3])
        row[x + 1] = time
        return time - latest <= self.within


def supported(events: "np.ndarray[Any, Any]", within: float) -> "np.ndarray[Any, Any]":
    """Which of `events`, ``[events, 4]`` of time, column, row, polarity in order of time, the filter keeps.

    >>> supported(np.array([[0, 5, 5, 1], [3, 6, 5, 0], [9, 6, 6, 1], [9, 1, 1, 1]]), 4.0)
    array([False,  True, False, False])
    """
    x, y = (events[:, k].astype(int) for k in (1, 2))
    keeps = Filter(int(y.max(initial=0)) + 1, int(x.max(initial=0)) + 1, within).keeps
    return np.array(list(map(keeps, events[:, 0].tolist(), x.tolist(), y.tolist())), bool)
