"""Small whole numbers times a factor as bit planes: sums of spikes, averages, spikes scaled by dropout.

    input = factor * sum over k of 2^k * plane k

Each plane holds spikes, so a product with such numbers is a product with spikes, with one scaled copy of the
weights per plane.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import INT, Code, Floats, Ints, Longs, Pointer, Value, float_bits, kernel
from hibana.spikes.simd.lists import SHIFT, SHIFT_BITS, WORD, words_of
from hibana.spikes.simd.rows import VECTOR

__all__ = ["MOST_PLANES", "ONE", "Planes", "candidate_factors", "join_planes", "pack_integers"]

MOST_PLANES = 4
"""Planes at most: numbers up to 15."""
SAMPLE = 2048
"""Numbers that are sampled for a factor before all are scanned."""
ONE = (1.0,)
"""The scales of spikes: one plane, factor 1."""
_NOT_A_MULTIPLE = 1 << 30
"""A level beyond all planes, which marks a number that is no multiple of the factor."""


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


def pack_integers(rows: Tensor) -> Planes | None:
    """Packs contiguous `rows` of numbers into bit planes; None unless all are a factor times 0, 1, …, 15.

    Each multiple of the factor, rounded to float32, must equal its number exactly.
    """
    for factor, plane_count in candidate_factors(rows):
        planes = _pack_multiples(rows, factor, plane_count)
        if planes is not None:
            return planes
    return None


def candidate_factors(numbers: Tensor) -> list[tuple[float, int]]:
    """Factors that all sampled `numbers` are small multiples of, each with the bits that the multiples need.

    `numbers` must fill their memory.
    """
    memory = numbers.as_strided((numbers.numel(),), (1,))
    sample = memory[:: numbers.numel() // SAMPLE | 1]
    smallest, largest = sample.where(sample > 0, float("inf")).min().item(), sample.max().item()
    candidates = [smallest]
    if smallest > largest:  # no sampled number is above zero
        largest, candidates = 1.0, [1.0]
    elif smallest % 1 == 0 and smallest != 1:
        candidates.append(1.0)
    return [
        (factor, round(largest / factor).bit_length())
        for factor in candidates
        if largest / factor < 1 << MOST_PLANES and _are_multiples(sample, factor)
    ]


def _are_multiples(numbers: Tensor, factor: float) -> bool:
    """Whether all `numbers` are `factor` times a whole number from 0."""
    return bool((((numbers / factor).round() * factor == numbers) & (numbers >= 0)).all())


def _pack_multiples(rows: Tensor, factor: float, planes: int) -> Planes | None:
    """Packs contiguous `rows` into bit planes: plane k holds bit k of each number divided by `factor`.

    There are at least `planes` planes. None if any number is no multiple of `factor`, or needs more than
    MOST_PLANES planes.
    """
    count, inputs = rows.shape
    bits = torch.empty(planes, count, -(-inputs // WORD), dtype=torch.int64, device="cpu")
    parts = torch.get_num_threads()
    ones = torch.empty(parts, dtype=torch.int64, device="cpu")
    levels = torch.empty(parts, VECTOR, dtype=torch.int32, device="cpu")
    try:
        unit = {"factor": float_bits(factor), "inverse": float_bits(1 / factor)}
    except OverflowError:
        return None
    tensors = {"source": rows, "bits": bits, "ones": ones, "levels": levels}
    _scan(parts, **tensors, **unit, inputs=inputs, rows=count, per_part=-(-count // parts), planes=planes)
    level_bits = reduce(or_, levels.flatten().tolist(), 0)
    if not 0 <= level_bits < 1 << MOST_PLANES:
        return None
    if (needed := max(1, level_bits.bit_length())) > planes:
        return _pack_multiples(rows, factor, needed)
    return Planes(bits[:needed], ones.sum().item() / max(1, needed * count * inputs), factor)


@kernel
def _scan(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    bits: Longs,
    ones: Longs,
    levels: Ints,
    inputs: Value,
    rows: Value,
    per_part: Value,
    factor: Value,
    inverse: Value,
    planes: int,
) -> None:
    """Packs rows of floats, divided by `factor`, into bit planes; one work item is a part of the rows.

    For each part it counts the ones and combines all quotients by "or". A quotient that is no integer counts
    as a number with more bits than there are planes. `factor` and `inverse` are the bits of float32.
    """
    full_words, remainder = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    factors, inverses = (number.to(INT).float_from_bits().spread(WORD) for number in (factor, inverse))
    not_multiple = code.constant(_NOT_A_MULTIPLE, INT.of(VECTOR))
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        count, level_bits = code.variable(0), code.variable(0, INT.of(VECTOR))
        first, last = part * per_part, ((part + 1) * per_part).smaller(rows)

        def pack(values: Value, target: Pointer) -> None:
            """Packs 64 numbers into one word of each plane, counts the ones, and ors the levels."""
            shifted = values * inverses + SHIFT
            level = shifted.float_bits() ^ SHIFT_BITS
            differs = ((shifted - SHIFT) * factors).differs(values)
            for lane in range(0, WORD, VECTOR):
                flag = differs.part(lane, VECTOR).select(not_multiple, 0)
                level_bits.value |= level.part(lane, VECTOR) | flag
            for plane in range(planes):
                word = (level & (1 << plane)).differs(0).word()
                count.value += word.popcount()
                (target + rows * words * plane).store(word)

        with code.loop(first, last) as row:
            at, out = source + inputs * row, bits + words * row
            with code.loop(0, full_words) as w:
                pack((at + WORD * w).load(WORD), out + w)
            with code.when(remainder > 0):
                tail.copy(at + WORD * full_words, remainder)
                pack(tail.load(WORD), out + full_words)
        ones[part] = count.value
        (levels + VECTOR * part).store(level_bits.value)
