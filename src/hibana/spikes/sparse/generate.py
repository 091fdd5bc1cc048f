"""Draws random synapses: how many each source neuron has, then their targets, delays and weights."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import address_of
from hibana.spikes.sparse.connections import Connections, row_starts_of
from hibana.spikes.sparse.row_draws import CHOICES, MAX_ROW, Entry, fill_rows

__all__ = ["Distribution", "Pattern", "Projection", "delay_thresholds", "generate", "multinomial"]

ROW_BLOCKS = 64
"""Blocks of rows with about equally many synapses, which threads share."""
MAX_DIGIT_BITS = 10
"""Most bits of a digit of the radix sort: the counts of its values, 8 KB, fit into the L1 cache."""
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

    def cumulative(self, x: float) -> float:
        """The probability of a number below `x`, without the bounds."""
        z = (x - self.offset) / self.scale
        return 0.5 * math.erfc(-z / math.sqrt(2)) if self.is_normal else min(max(z, 0.0), 1.0)


class Pattern(NamedTuple):
    """Which synapses a rule creates, without their weights and delays."""

    counts: Tensor
    """The number of synapses of each source neuron, ``[sources]``, int64."""
    targets: Tensor | None = None
    """The targets in order of sources, ``[synapses]``, int32; None for targets that are drawn."""
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


def delay_thresholds(delay: float | Distribution) -> Tensor:
    """The probability of each delay or a smaller one, in units of 2^-32: ``[256]``, int64.

    A delay is drawn as the number of thresholds that are at most a random word of 32 bits. Numbers of a
    distribution are rounded to whole delays; those rounded outside of [0, 255] are drawn again.

    Raises:
        ValueError: if a number is not whole and in [0, 255], or if less than 1% of a distribution is there.
    """
    if not isinstance(delay, Distribution):
        if not (0 <= delay < CHOICES and delay % 1 == 0):
            raise ValueError(f"delay must be a whole number of steps in [0, {CHOICES - 1}], got {delay}")
        return (torch.arange(CHOICES, device="cpu", dtype=torch.int64) >= delay).long() << 32
    edges = [min(max(step - 0.5, delay.low), delay.high) for step in range(CHOICES + 1)]
    shares = torch.tensor([delay.cumulative(x) for x in edges], dtype=torch.float64, device="cpu")
    shares -= shares[0].clone()
    if shares[-1] < SMALLEST_SHARE:
        raise ValueError(f"delay must lie in [0, {CHOICES - 1}] steps, got {delay}")
    return (shares[1:] / shares[-1] * 2**32).round().long()


def multinomial(total: int, size: int, generator: torch.Generator) -> Tensor:
    """The numbers of `total` balls in `size` urns, if each ball is put into a random urn: ``[size]``, int64.

    Splits the urns into halves: the number of balls in the first half is binomial.
    """
    counts = torch.tensor([total], dtype=torch.float64, device="cpu")
    for level in reversed(range(max(size - 1, 0).bit_length())):
        edges = (
            (torch.arange(2 * len(counts) + 1, device="cpu", dtype=torch.int64) << level)
            .clamp(max=size)
            .double()
        )
        sizes = edges.diff()
        first = torch.binomial(counts, sizes[::2] / (sizes[::2] + sizes[1::2]).clamp(min=1), generator)
        counts = torch.stack([first, counts - first], 1).flatten()
    return counts[:size].long()


def generate(projections: Sequence[Projection], shape: tuple[int, int]) -> Connections:
    """The synapses of all `projections` between ``shape[0]`` sources and ``shape[1]`` targets.

    Raises:
        ValueError: if a source neuron has more than 2^25 synapses, or there are more than 2^31 targets.
    """
    counts = torch.zeros(shape[0], dtype=torch.int64, device="cpu")
    for projection in projections:
        counts[projection.source.start : projection.source.stop] += projection.pattern.counts
    longest, target_bits = int(counts.max()) if shape[0] else 0, max(1, (shape[1] - 1).bit_length())
    if longest > MAX_ROW or target_bits > 31:
        raise ValueError(
            f"there may be 2^25 synapses of a source, and 2^31 target neurons, got {longest} and {shape[1]}"
        )
    row_starts = row_starts_of(counts)
    size = int(row_starts[-1])
    thresholds = torch.stack(
        [delay_thresholds(delay) for delay in (*(each.delay for each in projections), 0)]
    )
    max_delay = int((thresholds < 1 << 32).sum(1).max())
    starts = [
        row_starts_of(projection.pattern.counts) for projection in projections
    ]  # the table has addresses
    table = [_entry(projection, starts[i]) for i, projection in enumerate(projections)]
    numbers = [_weight_numbers(projection.weight) for projection in projections]
    has_weights = any(projection.weight is not None for projection in projections)
    targets = torch.empty(size, dtype=torch.int32, device="cpu")
    delays = torch.empty(size, dtype=torch.uint8, device="cpu") if max_delay else None
    weights = torch.empty(size, dtype=torch.float32, device="cpu") if has_weights else None
    key_bits = target_bits + max_delay.bit_length()
    # A row of mean length has at least as many keys as a digit has values.
    passes = -(-key_bits // min(max((size // max(1, shape[0])).bit_length(), 4), MAX_DIGIT_BITS))
    block_ends = torch.arange(1, ROW_BLOCKS, device="cpu", dtype=torch.int64) * size // ROW_BLOCKS
    inner = torch.searchsorted(row_starts[:-1], block_ends)
    fill_rows(
        ROW_BLOCKS,
        bounds=torch.cat([inner.new_zeros(1), inner, inner.new_tensor([shape[0]])]),
        row_starts=row_starts,
        table=torch.tensor(table, dtype=torch.int64, device="cpu"),
        thresholds=thresholds,
        numbers=torch.tensor(numbers, dtype=torch.float32, device="cpu"),
        targets=targets,
        delays=delays,
        weights=weights,
        projections=len(projections),
        longest=longest,
        words=shape[1] // 64 + 1,
        target_bits=target_bits,
        passes=passes,
        digit_bits=-(-key_bits // passes),
        has_delays=delays is not None,
        has_weights=has_weights,
    )
    return Connections(row_starts, targets, delays, weights)


def _entry(projection: Projection, starts: Tensor) -> Entry:
    """The entry of `projection` in the kernel's table; `starts` are the first synapses of its rows."""
    source, target, (_, targets, repeats), weight, _, seed = projection
    is_normal = isinstance(weight, Distribution) and weight.is_normal
    signed_seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)
    addresses = address_of(starts), 0 if targets is None else address_of(targets)
    ranges = source.start, source.stop, target.start, len(target)
    return Entry(*ranges, *addresses, int(repeats), signed_seed, int(is_normal))


def _weight_numbers(weight: float | Distribution | None) -> list[float]:
    """The six numbers of a projection from which the kernel draws a weight."""
    if not isinstance(weight, Distribution):
        return [0, 1, 0, weight or 0, weight or 0, weight or 0]
    _, offset, scale, low, high = weight
    if not weight.cumulative(high) - weight.cumulative(low) >= SMALLEST_SHARE:
        raise ValueError(f"low and high must leave {SMALLEST_SHARE:.0%} of the numbers, got {weight}")
    return [(low - offset) / scale, (high - offset) / scale, scale, offset, low, high]
