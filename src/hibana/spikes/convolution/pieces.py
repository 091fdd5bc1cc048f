"""The number of output rows that a piece of a convolution's work has, for cache and threads."""

from functools import lru_cache

from hibana.runtime.kernels import FLOAT
from hibana.spikes.convolution.geometry import Geometry

__all__ = ["PIECES", "rows_at_once", "rows_per_tile"]

PIECES = 4
"""Of work, for each thread, that they may share evenly."""
ROOM = 1 << 19
"""Bytes of sums that are kept until a forward that is fused has read them: a part of a core's cache."""
FEWEST = 96
"""Pixels that are worth a piece."""


def rows_at_once(height: int, most: int, shared: int, row: int) -> int:
    """Of `height` rows of so many pixels: at `most`, and as the work is `shared`, but enough for a piece."""
    deep = max(1, min(most, shared), -(-FEWEST // row))
    return -(-height // -(-height // deep))


@lru_cache(maxsize=256)
def rows_per_tile(images: int, outputs: int, geometry: Geometry, steps: int, threads: int) -> int:
    """Rows of the output, a divisor of all, whose sums at all steps stay in the cache; 0 if none do."""
    height, width = geometry.output
    most = min(height, ROOM // (steps * width * outputs * FLOAT.size))
    enough = -(-min(FEWEST, height * width) // width)
    fitting = [rows for rows in range(enough, most + 1) if height % rows == 0]
    shared = [rows for rows in fitting if images * height // rows >= PIECES * threads]
    return max(shared) if shared else min(fitting, default=0)
