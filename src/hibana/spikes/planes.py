"""Small whole numbers times a factor as bit planes: sums of spikes, averages, spikes scaled by dropout.

    input = factor * sum over k of 2^k * plane k

Each plane holds spikes, so a product with such numbers is a product with spikes, with one scaled copy of the
weights per plane.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hibana.spikes.bits import scan
from hibana.spikes.simd.lists import WORD

__all__ = ["MOST_PLANES", "ONE", "Planes", "join_planes", "pack_integers"]

MOST_PLANES = 4
"""Planes at most: numbers up to 15."""
SAMPLE = 2048
"""Numbers that are sampled for a factor before all are scanned."""
ONE = (1.0,)
"""The scales of spikes: one plane, factor 1."""


class Planes(NamedTuple):
    """Numbers as bit planes: bit k of a number, in plane k, stands for ``factor * 2^k``."""

    bits: Tensor
    """``[planes, rows, words]`` of 64 bits, the least significant plane first."""
    density: float
    """Fraction of the bits that are set."""
    factor: float = 1.0

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor of each plane."""
        return tuple(self.factor * 2.0**k for k in range(self.bits.shape[0]))

    @property
    def joint(self) -> Tensor:
        """All planes side by side, ``[rows, planes * words]``."""
        return join_planes(self.bits.unbind())


def join_planes(planes: Sequence[Tensor]) -> Tensor:
    """Concatenates bit planes ``[rows, words]`` to ``[rows, planes * words]``."""
    return planes[0] if len(planes) == 1 else torch.cat(tuple(planes), 1)


def pack_integers(numbers: Tensor, rows: Callable[[], Tensor]) -> Planes | None:
    """Packs numbers into bit planes; None unless all are a factor times 0, 1, …, 15.

    Each multiple of the factor, rounded to float32, must equal its number exactly.

    Args:
        numbers: the numbers, in any order that fills their memory; a sample of them suggests the factor.
        rows: returns the numbers as contiguous rows.
    """
    for factor, plane_count in _candidate_factors(numbers):
        planes = _pack_multiples(rows(), factor, plane_count)
        if planes is not None:
            return planes
    return None


def _candidate_factors(numbers: Tensor) -> list[tuple[float, int]]:
    """Factors that all sampled `numbers` are small multiples of, each with the bits that the multiples need.

    `numbers` must fill their memory.
    """
    memory = numbers.as_strided((numbers.numel(),), (1,))
    values = np.unique(memory[:: numbers.numel() // SAMPLE | 1].numpy())
    largest, positive = float(values[-1]), values[values > 0]
    if values[0] < 0 or len(values) > 1 << MOST_PLANES:
        return []
    if not len(positive):
        return [(1.0, 1)]
    smallest = float(positive[0])
    candidates = [smallest, 1.0] if smallest % 1 == 0 and smallest != 1 else [smallest]
    return [
        (factor, round(largest / factor).bit_length())
        for factor in candidates
        if largest / factor < 1 << MOST_PLANES and (np.round(values / factor) * factor == values).all()
    ]


def _pack_multiples(rows: Tensor, factor: float, planes: int) -> Planes | None:
    """Packs contiguous `rows` into bit planes: plane k holds bit k of each number divided by `factor`.

    There are at least `planes` planes. None if any number is no multiple of `factor`, or needs more than
    MOST_PLANES planes.
    """
    count, inputs = rows.shape
    bits = torch.empty(planes, count, -(-inputs // WORD), dtype=torch.int64, device="cpu")
    try:
        ones, level_bits = scan(rows, bits, inputs, factor)
    except OverflowError:
        return None
    if not 0 <= level_bits < 1 << MOST_PLANES:
        return None
    if (needed := max(1, level_bits.bit_length())) > planes:
        return _pack_multiples(rows, factor, needed)
    return Planes(bits[:needed], ones / max(1, needed * count * inputs), factor)
