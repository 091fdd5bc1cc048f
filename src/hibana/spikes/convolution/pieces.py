"""The number of output rows that a piece of a convolution's work has, for cache and threads."""

from functools import lru_cache

from hibana.runtime.kernels import FLOAT
from hibana.spikes.convolution.geometry import Geometry

__all__ = ["PIECES", "rows_per_tile"]

PIECES = 4
"""Work items per thread, so that threads share the work evenly."""
ROOM = 1 << 19
"""Bytes of sums that stay in a core's cache until the fused forward has read them."""
FEWEST = 96
"""Pixels of a work item, at least."""


@lru_cache(maxsize=256)
def rows_per_tile(images: int, outputs: int, geometry: Geometry, steps: int, threads: int) -> int:
    """Rows of the output, a divisor of its height, whose sums at all steps fit into ROOM; 0 if none do."""
    height, width = geometry.output
    most = min(height, ROOM // (steps * width * outputs * FLOAT.size))
    enough = -(-min(FEWEST, height * width) // width)
    fitting = [rows for rows in range(enough, most + 1) if height % rows == 0]
    shared = [rows for rows in fitting if images * height // rows >= PIECES * threads]
    return max(shared) if shared else min(fitting, default=0)
