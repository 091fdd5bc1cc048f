"""Draws random synapses: how many each source neuron has, then their targets, delays and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import address_of, float_bits
from hibana.spikes.sparse.connections import Connections, check_target_count, row_starts_of
from hibana.spikes.sparse.distributions import CHOICES, Distribution, alias_table
from hibana.spikes.sparse.row_draws import MAX_ROW, Entry, fill_rows

__all__ = ["Pattern", "Projection", "generate", "multinomial"]

ROW_BLOCKS = 64
"""Blocks of rows with about equally many synapses, which threads share."""
MAX_DIGIT_BITS = 10
"""Most bits by which a pass of the radix sort sorts: its counts, 8 KB, fit into the L1 cache."""


class Pattern(NamedTuple):
    """Which synapses a rule creates, without their weights and delays."""

    counts: Tensor
    """The number of synapses of each source neuron, ``[sources]``, int64."""
    targets: Tensor | None = None
    """The targets in order of sources, ``[synapses]``, int32; None for targets that are drawn."""
    repeats: bool = False
    """Whether a drawn target may occur several times in a row."""


class Projection(NamedTuple):
    """Synapses from one range of neurons to another."""

    source: range
    target: range
    pattern: Pattern
    """Its targets count from the begin of `target`."""
    weight: float | Distribution | None
    """The weight of each synapse; None if the layer shall draw the weights."""
    delay: float | Distribution
    """The delay of each synapse in steps."""
    seed: int
    """Seed of targets, weights and delays; its lowest 64 bits are used."""


def multinomial(total: int, size: int, generator: torch.Generator) -> Tensor:
    """The numbers of `total` balls in `size` urns, if each ball is put into a random urn: ``[size]``, int64.

    Splits the urns into halves: the number of balls in the first half is binomial.
    """
    counts = torch.tensor([total], dtype=torch.float64, device="cpu")
    for level in reversed(range(max(size - 1, 0).bit_length())):
        edges = (torch.arange(2 * len(counts) + 1, device="cpu") << level).clamp(max=size).double()
        sizes = edges.diff()
        first = torch.binomial(counts, sizes[::2] / (sizes[::2] + sizes[1::2]).clamp(min=1), generator)
        counts = torch.stack([first, counts - first], 1).flatten()
    return counts[:size].long()


def generate(projections: Sequence[Projection], shape: tuple[int, int]) -> Connections:
    """The synapses of all `projections` between ``shape[0]`` sources and ``shape[1]`` targets.

    Raises:
        ValueError: if a source neuron has more than 2^25 synapses, or there are more than 2^31 targets.
    """
    check_target_count(shape[1])
    counts = torch.zeros(shape[0], dtype=torch.int64, device="cpu")
    for projection in projections:
        counts[projection.source.start : projection.source.stop] += projection.pattern.counts
    longest = int(counts.max()) if shape[0] else 0
    if longest > MAX_ROW:
        raise ValueError(f"a source neuron may have at most {MAX_ROW} synapses, got {longest}")
    row_starts = row_starts_of(counts)
    size = int(row_starts[-1])
    tables = {projection.delay: alias_table(projection.delay) for projection in projections}
    columns = torch.arange(CHOICES, device="cpu")
    possible = [torch.maximum(table & 0xFF, columns * (table >> 8 != 0)) for table in tables.values()]
    max_delay = max((int(delays.max()) for delays in possible), default=0)
    starts = [row_starts_of(projection.pattern.counts) for projection in projections]
    entries = [
        _entry(each, begins, tables[each.delay]) for each, begins in zip(projections, starts, strict=True)
    ]
    has_weights = any(projection.weight is not None for projection in projections)
    targets = torch.empty(size, dtype=torch.int32, device="cpu")
    delays = torch.empty(size, dtype=torch.uint8, device="cpu") if max_delay else None
    weights = torch.empty(size, dtype=torch.float32, device="cpu") if has_weights else None
    target_bits = max(1, (shape[1] - 1).bit_length())
    key_bits = target_bits + max_delay.bit_length()
    # A row of mean length has at least as many keys as a digit has values.
    passes = -(-key_bits // min(max((size // max(1, shape[0])).bit_length(), 4), MAX_DIGIT_BITS))
    block_ends = torch.arange(1, ROW_BLOCKS, device="cpu") * size // ROW_BLOCKS
    inner = torch.searchsorted(row_starts[:-1], block_ends)
    fill_rows(
        ROW_BLOCKS,
        bounds=torch.cat([inner.new_zeros(1), inner, inner.new_tensor([shape[0]])]),
        row_starts=row_starts,
        table=torch.tensor(entries, dtype=torch.int64, device="cpu"),
        targets=targets,
        delays=delays,
        weights=weights,
        projections=len(projections),
        longest=longest,
        words=max((len(projection.target) for projection in projections), default=0) // 64 + 1,
        target_bits=target_bits,
        passes=passes,
        digit_bits=-(-key_bits // passes),
        has_delays=delays is not None,
        has_weights=has_weights,
    )
    return Connections(row_starts, targets, delays, weights)


def _entry(projection: Projection, starts: Tensor, delays: Tensor) -> Entry:
    """The entry of `projection` in the table of :func:`fill_rows`.

    `starts` are the indices of the first synapse of each row, and `delays` an alias table. The entry holds
    their addresses: both tensors must live until the kernel ends.
    """
    targets, weight = projection.pattern.targets, projection.weight
    if isinstance(weight, Distribution):
        offset, scale, low, high = weight.offset, weight.scale, weight.low, weight.high
        least, most = (low - offset) / scale, (high - offset) / scale
    else:
        offset = low = high = weight or 0.0
        scale, least, most = 0.0, 0.0, 1.0
    return Entry(
        projection.source.start,
        projection.source.stop,
        projection.target.start,
        len(projection.target),
        address_of(starts),
        0 if targets is None else address_of(targets),
        int(projection.pattern.repeats),
        (projection.seed + (1 << 63)) % (1 << 64) - (1 << 63),
        address_of(delays),
        int(isinstance(weight, Distribution) and weight.is_normal),
        *map(float_bits, (least, most, scale, offset, low, high)),
    )
