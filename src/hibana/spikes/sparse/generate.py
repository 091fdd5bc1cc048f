"""Draws random synapses: how many each source neuron has, then their targets, delays and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.spikes.sparse.connections import Connections
from hibana.spikes.sparse.distributions import Distribution, Normal, delay_probabilities

__all__ = ["Pattern", "Projection", "draw_targets", "generate", "multinomial"]


class Pattern(NamedTuple):
    """Which synapses a rule creates, without their weights and delays."""

    counts: Tensor
    """The number of synapses of each source neuron, ``[sources]``, int64."""
    targets: Tensor | None = None
    """The targets in order of sources, ``[synapses]``; None for targets drawn from the uniform law."""
    repeats: bool = False
    """Whether a drawn target may occur several times in a row."""


class Projection(NamedTuple):
    """Synapses from one range of neurons to another."""

    source: range
    target: range
    pattern: Pattern
    """Its targets count from the begin of `target`."""
    weight: float | Distribution | None
    """The weight of each synapse; None if the layer shall draw them."""
    delay: float | Distribution
    """The delay of each synapse in steps."""
    seed: int
    """Seed of targets, weights and delays, 64 bits."""


def multinomial(total: int, size: int, generator: torch.Generator) -> Tensor:
    """The numbers of `total` balls in `size` urns, if each ball is put into a random urn: ``[size]``, int64.

    Splits the urns into halves: the number of balls in the first half is binomial.
    """
    counts = torch.tensor([total], dtype=torch.float64, device="cpu")
    depth = max(size - 1, 0).bit_length()
    for level in range(depth):
        begins = torch.arange(1 << level, device="cpu") << (depth - level)
        middles, ends = begins + (1 << (depth - level - 1)), begins + (1 << (depth - level))
        sizes = ends.clamp(max=size) - begins.clamp(max=size)
        first_sizes = middles.clamp(max=size) - begins.clamp(max=size)
        first = torch.binomial(counts, first_sizes / sizes.clamp(min=1).double(), generator)
        counts = torch.stack([first, counts - first], 1).flatten()
    return counts[:size].long()


def draw_targets(pattern: Pattern, size: int, seed: int) -> Tensor:
    """The targets of each source neuron, from 0 to `size` - 1, in increasing order: ``[synapses]``, int64."""
    if pattern.targets is not None:
        return pattern.targets.long()
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = []
    for count in pattern.counts.tolist():
        if pattern.repeats:
            drawn = torch.randint(size, (count,), generator=generator, device="cpu")
        else:
            drawn = torch.randperm(size, generator=generator, device="cpu")[:count]
        rows.append(drawn.sort().values)
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64, device="cpu")


def generate(projections: Sequence[Projection], shape: tuple[int, int]) -> Connections:
    """The synapses of all `projections` between ``shape[0]`` sources and ``shape[1]`` targets."""
    empty = torch.empty(0, dtype=torch.int64, device="cpu")
    sources, targets, delays, weights = [empty], [empty], [empty.to(torch.uint8)], []
    for projection in projections:
        pattern = projection.pattern
        generator = torch.Generator("cpu").manual_seed(projection.seed)
        row = torch.arange(projection.source.start, projection.source.stop, device="cpu")
        sources.append(row.repeat_interleave(pattern.counts))
        targets.append(
            draw_targets(pattern, len(projection.target), projection.seed) + projection.target.start
        )
        delays.append(_draw_delays(projection.delay, len(sources[-1]), generator))
        if projection.weight is not None:
            weights.append(_draw_weights(projection.weight, len(sources[-1]), generator))
    all_delays = torch.cat(delays)
    has_delays = any(projection.delay != 0 for projection in projections)
    return Connections.from_pairs(
        torch.cat(sources),
        torch.cat(targets),
        shape,
        all_delays if has_delays else None,
        torch.cat(weights) if weights else None,
    )


def _draw_delays(delay: float | Distribution, count: int, generator: torch.Generator) -> Tensor:
    """The delays of `count` synapses, uint8."""
    if isinstance(delay, float | int):
        return torch.full((count,), int(delay), dtype=torch.uint8, device="cpu")
    edges = delay_probabilities(delay).cumsum(0)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") * edges[-1]
    return torch.searchsorted(edges, uniform, right=True).to(torch.uint8)


def _draw_weights(weight: float | Distribution, count: int, generator: torch.Generator) -> Tensor:
    """The weights of `count` synapses, float32."""
    if isinstance(weight, float | int):
        return torch.full((count,), float(weight), device="cpu")
    weights = torch.empty(count, device="cpu")
    if not isinstance(weight, Normal):
        return weights.uniform_(weight.low, weight.high, generator=generator)
    weights.normal_(weight.mean, weight.std, generator=generator)
    while len(outside := ((weights < weight.low) | (weights > weight.high)).nonzero()):
        weights[outside] = torch.empty(outside.shape, device="cpu").normal_(
            weight.mean, weight.std, generator=generator
        )
    return weights
