"""Estimates the time of a product's candidates, per spike and by torch, on this processor.

The estimates depend on sizes, density, number of threads and the processor's features alone. They count what
the kernels do: words of bits that are listed, rows of weights that are added or looked up, weights that are
packed. Constants are nanoseconds of one thread, measured on AMD EPYC (Zen 4), with AVX-512 and restricted to
AVX2, where the kernels differ by less than a fifth; `benchmarks` holds the tables of ``--only cells``.
"""

import platform
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hibana.runtime.kernels import compresses, is_amd, multiplies_full_vectors
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import VECTOR, panel

__all__ = ["Costs", "Key", "PerSpike", "estimate"]

ADD, LOOK_UP, DOT = 0.38, 0.115, 0.5
"""A vector of 16 weights: added for a spike; looked up for an input, in a table of sums of four inputs; times
a vector of the gradient (1.6 times as long without AVX-512)."""
LIST, LIST_TRANSPOSED = 3.0, 1.2
"""A word of 64 bits, for each panel of outputs: listed in the forward, and in the weight gradient."""
GATHER, TRANSPOSE = 0.05, 0.1
"""A bit that is read for tables: gathered in the forward, and transposed in the weight gradient."""
SCAN, CLEAR = 0.13, 0.3
"""A number of the input: packed into bits, and cleared in its gradient."""
PACK, PACK_FAR = 0.3, 0.8
"""A weight that is packed and read again, or whose gradient is written: in the caches, and beyond the last
one. More threads do not speed it up, since all wait for the same memory."""
MULTIPLY_MKL, MULTIPLY, MULTIPLY_FULL, MULTIPLY_UNKNOWN = 0.020, 0.0155, 0.011, 0.005
"""A multiplication and addition of torch's dense product: of linear layers by MKL with half-width units
(AVX2, all of AMD's processors), of convolutions by oneDNN there, and of both with full-width AVX-512 units.
The last is for processors other than x86, on which nothing was measured: events must pay by far."""
NARROW, NARROW_FACTOR = 16, 2.2
"""Most outputs of a linear product for which MKL takes so many times as long with half-width units."""
LOOK, CALL, LEARNING_CALL, RESTRICT = 60e3, 100e3, 200e3, 20e3
"""What a call takes beside its kernels, more than torch's: to sample the density of an input; to compute it
per spike, in inference and with the autograd node; to restrict an input gradient."""
COLD = 2.5
"""Factor of these times if a product exceeds the L2 cache: Python then finds none of its own data there."""
MARGIN = 1.2
"""Factor of all estimates per spike, so that torch computes products whose candidates take about as long."""
CACHES = 1 << 20, 8 << 20
"""Bytes of the L2 cache of a core and of the last-level cache, where the system does not tell them."""


class Key(NamedTuple):
    """Kind and sizes of a product: the argument of the rule, and the key of the table of tuned times."""

    product: str
    """Kind of product, such as ``"linear"`` or ``"convolution input"``."""
    sizes: tuple[object, ...]
    """Further sizes on which the time of a candidate depends, such as a convolution's geometry."""
    rows: int
    """Rows of the product; for a convolution, the number of output pixels of all images."""
    inputs: int
    """Number of inputs of each sum: of a window, or of a row."""
    outputs: int
    numbers: int
    """Numbers of the whole input."""
    lists: int
    """Words of bits that are listed for each row."""
    density: int = 0
    """Index of the interval of densities in the table of tuned times; 0 elsewhere."""
    planes: int = 1
    learning: bool = False
    """Whether the weights get a gradient."""


class PerSpike(NamedTuple):
    """Seconds of a product per spike: by lists, or by tables where that is faster."""

    fixed: float
    listed: float
    added: float
    """Seconds to add all inputs, as if all were spikes."""
    looked_up: float

    def seconds(self, ones: float) -> float:
        """Seconds for this fraction of bits that are set, summed over all bit planes."""
        return self.fixed + min(self.listed + ones * self.added, self.looked_up)


class Costs(NamedTuple):
    """Seconds of each candidate of a product; those per spike with :data:`MARGIN`."""

    forward: PerSpike
    dense_forward: float
    weights: PerSpike
    dense_gradient: float
    """Seconds of the gradient of the weights by torch, and of that of the input."""
    input: PerSpike
    """The input gradient, over the density of its mask."""
    scan: float
    """Seconds to pack the input, and all that a call takes beside its kernels."""
    look: float
    """Seconds to sample the density of the input."""


@lru_cache(maxsize=1024)
def estimate(key: Key, threads: int) -> Costs:
    """The costs of a product of these sizes with `threads` threads."""
    row = panel(key.outputs)
    panels = -(-key.outputs // row.floats)
    vectors = panels * row.vectors
    products = key.rows * key.inputs * vectors * key.planes
    bits = key.rows * -(-key.inputs // WORD) * WORD * key.planes
    lists = key.rows * key.lists * panels * key.planes
    weights = key.inputs * key.outputs
    l2, last_cache = _caches()
    pack = weights * (PACK_FAR if 8 * weights > last_cache else PACK)
    numbers = key.numbers + weights + key.rows * key.outputs
    cold = COLD if 4 * numbers > l2 * threads else 1.0
    share, margin = 1e-9 / threads, 1e-9 * MARGIN
    step = margin / threads

    def per_spike(fixed: float, each_list: float, add: float, each_bit: float) -> PerSpike:
        look_up = bits * (vectors * LOOK_UP + each_bit)
        return PerSpike(fixed, lists * each_list * step, products * add * step, look_up * step)

    forward = per_spike(pack * key.planes * margin, LIST, ADD, GATHER)
    transposed = pack * key.planes * margin + bits * TRANSPOSE * step
    gradient = per_spike(transposed, LIST_TRANSPOSED, ADD, 0.0)
    cleared = cold * RESTRICT * margin + key.numbers * CLEAR * step
    dot = DOT if compresses() else 1.6 * DOT
    restricted = PerSpike(cleared, lists * LIST * step, products * dot * step, float("inf"))
    dense = key.rows * key.inputs * -(-key.outputs // VECTOR) * VECTOR * share  # narrow ones are padded
    is_linear = key.product.startswith("linear")
    if is_linear and key.outputs <= NARROW and _multiply_add(True) == MULTIPLY_MKL:
        dense *= NARROW_FACTOR
    return Costs(
        forward,
        dense * _multiply_add(is_linear),
        gradient,
        dense * _multiply_add(False),
        restricted,
        key.numbers * SCAN * step + cold * (LEARNING_CALL if key.learning else CALL) * margin,
        cold * LOOK * 1e-9,
    )


def _multiply_add(by_mkl: bool) -> float:
    """Nanoseconds of a multiplication and addition of a dense product, on one thread of this processor."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return MULTIPLY_UNKNOWN
    if multiplies_full_vectors() and not (by_mkl and is_amd()):
        return MULTIPLY_FULL
    return MULTIPLY_MKL if by_mkl else MULTIPLY


def _caches() -> tuple[int, int]:
    """Bytes of the L2 cache of a core, and of the last-level cache."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [(folder / f"index{index}/size") for index in (2, 3)]
    if not all(path.is_file() for path in sizes):
        return CACHES
    l2, last = (int(path.read_text(encoding="utf-8").strip().rstrip("K")) << 10 for path in sizes)
    return l2, last
