"""Draws random synapses: for each source neuron its targets, and for each synapse a delay and a weight."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from hibana.spikes.sparse.connections import MAX_DELAY, Connections

__all__ = ["Array", "Distribution", "Pattern", "Projection", "draw_delays", "draw_sets", "generate"]

Array = NDArray[Any]

CHUNK_PAIRS, CHUNK_ROWS = 1 << 22, 64
"""Most pairs of a source and a target neuron in a chunk of rows, unless these are the fewest rows of a chunk.
The synapses of a chunk are in memory as 64-bit keys while they are drawn."""
DELAY_BITS = MAX_DELAY.bit_length()
SMALLEST_SHARE = 0.01
"""Smallest share of random numbers that bounds may leave, since numbers outside are drawn again."""


class Distribution(NamedTuple):
    """Random numbers ``offset + scale z``; those outside of [`low`, `high`] are drawn again."""

    is_normal: bool
    """Whether z is a standard normal number; otherwise it is uniform in [0, 1)."""
    offset: float
    scale: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """The probability of a number in the bounds, without drawing again."""
        z_low, z_high = ((bound - self.offset) / self.scale for bound in (self.low, self.high))
        if self.is_normal:
            return 0.5 * (math.erfc(-z_high / math.sqrt(2)) - math.erfc(-z_low / math.sqrt(2)))
        return min(max(z_high, 0.0), 1.0) - min(max(z_low, 0.0), 1.0)

    def draw(self, generator: Generator, count: int) -> Array:
        """`count` random numbers, float32; raises a ValueError if too few numbers lie in the bounds."""
        if not self.share >= SMALLEST_SHARE:
            raise ValueError(f"low and high must leave {SMALLEST_SHARE:.0%} of the numbers, got {self}")
        numbers = self._draw_without_bounds(generator, count)
        outside = self._outside(numbers)
        while len(outside):
            redrawn = self._draw_without_bounds(generator, len(outside))
            numbers[outside] = redrawn
            outside = outside[self._outside(redrawn)]
        return numbers

    def _draw_without_bounds(self, generator: Generator, count: int) -> Array:
        """`count` random numbers, also outside of the bounds."""
        draw = generator.standard_normal if self.is_normal else generator.random
        numbers: Array = draw(count, dtype=np.float32)
        numbers *= self.scale
        numbers += self.offset
        return numbers

    def _outside(self, numbers: Array) -> Array:
        """The indices of the `numbers` outside of the bounds."""
        return np.flatnonzero((numbers < self.low) | (numbers > self.high))


class Pattern(NamedTuple):
    """Which synapses a rule creates, without their weights and delays."""

    counts: Array
    """The number of synapses of each source neuron, ``[sources]``, int64."""
    targets: Array | None = None
    """The targets in order of sources, ``[synapses]``; None for targets that are drawn."""
    repeats: bool = False
    """Whether a drawn target may occur several times in a row."""


class Projection(NamedTuple):
    """Synapses from one range of neurons to another; the targets of the pattern count from its begin."""

    source: range
    target: range
    pattern: Pattern
    weight: float | Distribution | None
    delay: float | Distribution
    seed: int
    """Seed of the random numbers, in [0, 2^64)."""


def draw_delays(delay: float | Distribution, generator: Generator, count: int) -> Array:
    """The delays of `count` synapses in whole steps, uint8.

    Numbers of a distribution are rounded; those rounded outside of [0, 255] are drawn again.

    Raises:
        ValueError: if a number is not whole and in [0, 255], or if less than 1% of a distribution is there.
    """
    if not isinstance(delay, Distribution):
        if not (0 <= delay <= MAX_DELAY and delay % 1 == 0):
            raise ValueError(f"delay must be a whole number of steps in [0, {MAX_DELAY}], got {delay}")
        return np.full(count, delay, np.uint8)
    bounded = delay._replace(low=max(delay.low, -0.5), high=min(delay.high, MAX_DELAY + 0.5))
    if not bounded.share >= SMALLEST_SHARE:
        raise ValueError(f"delay must lie in [0, {MAX_DELAY}] steps, got {delay}")
    return bounded.draw(generator, count).round().clip(0, MAX_DELAY).astype(np.uint8)


def _draw_weights(weight: float | Distribution | None, generator: Generator, count: int) -> Array:
    """The weights of `count` synapses, float32; zeros for None."""
    if isinstance(weight, Distribution):
        return weight.draw(generator, count)
    return np.full(count, weight or 0, np.float32)


def draw_sets(generator: Generator, counts: Array, size: int) -> Array:
    """For each of the `counts`, so many different numbers below `size`; all sets are equally probable.

    The sets are concatenated, int64.
    """
    sets = [generator.choice(size, count, replace=False, shuffle=False) for count in counts.tolist() if count]
    return np.concatenate([np.empty(0, np.int64), *sets])


def generate(projections: Sequence[Projection], shape: tuple[int, int]) -> Connections:
    """The synapses of all `projections` between ``shape[0]`` sources and ``shape[1]`` targets.

    Threads share chunks of rows. The random numbers of a projection in a chunk depend on its seed and on the
    chunk, so the result does not depend on the number of threads.

    Raises:
        ValueError: if there are more than 2^31 target neurons, or if a delay or a weight can't be drawn.
    """
    if shape[1] > 1 << 31:
        raise ValueError(f"there may be at most 2^31 target neurons, got {shape[1]}")
    counts = np.zeros(shape[0], np.int64)
    for projection in projections:
        counts[projection.source.start : projection.source.stop] += projection.pattern.counts
    row_starts = np.append(0, np.cumsum(counts))
    size = int(row_starts[-1])
    has_delays = any(projection.delay != 0 for projection in projections)
    has_weights = any(projection.weight is not None for projection in projections)
    targets = np.empty(size, np.int32)
    delays = np.empty(size, np.uint8) if has_delays else None
    weights = np.empty(size, np.float32) if has_weights else None
    target_bits, index_bits = max(shape[1] - 1, 0).bit_length(), len(projections).bit_length()
    chunk_rows = max(CHUNK_ROWS, CHUNK_PAIRS // max(1, shape[1]))

    def fill(first_row: int) -> None:
        """Writes the synapses of a chunk of rows, in order of rows, delays and targets."""
        rows = range(first_row, min(first_row + chunk_rows, shape[0]))
        chunk = slice(row_starts[rows.start], row_starts[rows.stop])
        keys, drawn_weights, done = np.empty(chunk.stop - chunk.start, np.int64), [np.empty(0, np.float32)], 0
        for index, projection in enumerate(projections):
            if projection.source.stop <= rows.start or rows.stop <= projection.source.start:
                continue
            generator = default_rng(SeedSequence(projection.seed, spawn_key=(first_row,)))
            sources, their_targets = _draw_pairs(projection, rows, generator)
            # a key holds, from its upper bits to its lower bits: row, delay, target, number of the projection
            key = keys[done : done + len(sources)]
            np.left_shift(sources, DELAY_BITS, out=key)
            key |= draw_delays(projection.delay, generator, len(sources))
            key <<= target_bits
            key |= their_targets
            key <<= index_bits
            key |= index
            done += len(sources)
            drawn_weights.append(_draw_weights(projection.weight, generator, len(sources)))
        keys.sort()
        if weights is not None:  # any weight of a projection fits any of its synapses
            indices = (keys & ((1 << index_bits) - 1)).astype(np.min_scalar_type(len(projections)))
            weights[chunk][indices.argsort(kind="stable")] = np.concatenate(drawn_weights)
        keys >>= index_bits
        targets[chunk] = keys & ((1 << target_bits) - 1)
        if delays is not None:
            keys >>= target_bits
            delays[chunk] = keys & MAX_DELAY

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, range(0, shape[0], chunk_rows)):
            pass  # raises the errors of `fill`
    tensors = [None if array is None else torch.from_numpy(array) for array in (delays, weights)]
    return Connections(torch.from_numpy(row_starts), torch.from_numpy(targets), *tensors)


def _draw_pairs(projection: Projection, rows: range, generator: Generator) -> tuple[Array, Array]:
    """The sources, counted from the first of `rows`, and the targets of a projection's synapses in `rows`.

    At least one of the `rows` must be a source neuron of the projection.
    """
    source, target, (counts, targets, repeats), *_ = projection
    start, stop = max(rows.start, source.start), min(rows.stop, source.stop)
    earlier, counts = np.split(counts[: stop - source.start], [start - source.start])
    sources = np.repeat(np.arange(start - rows.start, stop - rows.start), counts)
    if targets is not None:
        first = earlier.sum()
        targets = targets[first : first + len(sources)]
    elif repeats:
        targets = generator.integers(len(target), size=len(sources)) if len(sources) else sources
    else:
        targets = draw_sets(generator, counts, len(target))
    return sources, targets + target.start
