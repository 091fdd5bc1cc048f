"""Small whole numbers times a factor as bit planes: sums of spikes, averages, spikes scaled by dropout.

    input = factor * sum over k of 2^k * plane k

Each plane is spikes, so a product with whole numbers is one with spikes and as many scaled copies of weights.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import FLOAT, INT, Code, Floats, Ints, Longs, Pointer, Value, float_bits, kernel
from hibana.spikes.simd.lists import SHIFT, SHIFT_BITS, WORD, words_of
from hibana.spikes.simd.rows import VECTOR

__all__ = ["ONE", "Planes", "factors", "joined", "whole_numbers"]

MOST = 4
"""Planes at most: numbers to 15."""
SAMPLE = 2048
"""Numbers that are sampled for a factor before all are scanned."""
ONE = (1.0,)
"""The scales of spikes: one plane, factor 1."""
_ODD = 1 << 30


class Planes(NamedTuple):
    """Numbers as bits."""

    bits: Tensor
    """``[planes, rows, words]`` of 64 bits, the plane of ones first."""
    density: float
    """Share of the bits that are set."""
    factor: float = 1.0

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor of each plane."""
        return tuple(self.factor * 2.0**k for k in range(self.bits.shape[0]))

    @property
    def joint(self) -> Tensor:
        """``[rows, planes * words]``."""
        return joined(self.bits.unbind())


def joined(planes: Sequence[Tensor]) -> Tensor:
    """``[rows, planes * words]`` of a matrix of words for each plane."""
    return planes[0] if len(planes) == 1 else torch.cat(tuple(planes), 1)


def whole_numbers(rows: Tensor) -> Planes | None:
    """Contiguous `rows` of numbers as planes; None unless all are a factor times 0, 1, 2, … up to 15.

    Their products with the factor, rounded to float32, must be exactly the numbers that are given.
    """
    for factor, planes in factors(rows):
        found = _split(rows, factor, planes)
        if found is not None:
            return found
    return None


def factors(numbers: Tensor) -> list[tuple[float, int]]:
    """Factors of which a sample of `numbers`, which fill their memory, are small multiples, and the planes
    that these need.
    """
    smallest, largest, not_times_it, not_whole = _sampled(numbers)
    candidates = {smallest: not_times_it}
    if smallest > largest:  # nothing but zeros was seen
        largest, candidates = 1.0, {1.0: not_whole}
    elif smallest % 1 == 0:
        candidates.setdefault(1.0, not_whole)
    return [
        (factor, round(largest / factor).bit_length())
        for factor, refused in candidates.items()
        if not refused and largest / factor < 1 << MOST
    ]


def _sampled(rows: Tensor) -> list[float]:
    """Of a sample: smallest and largest number above zero; 1 if any is no multiple of the smallest, or no
    integer.
    """
    found = torch.empty(4, dtype=torch.float32, device="cpu")
    count = rows.numel()
    _sample(1, source=rows, found=found, count=count, step=count // SAMPLE | 1)
    seen: list[float] = found.tolist()
    return seen


@kernel
def _sample(
    code: Code, begin: Value, end: Value, *, source: Floats, found: Floats, count: Value, step: Value
) -> None:
    """The kernel of :func:`_sampled`, over every `step`-th of `count` numbers."""
    with code.loop(begin, end):
        smallest, largest = code.variable(float("inf"), FLOAT), code.variable(0.0, FLOAT)
        with code.loop(0, count, step) as i:
            number = source[i]
            smallest.value = ((number > 0.0) & (number < smallest.value)).select(number, smallest.value)
            largest.value = (number > largest.value).select(number, largest.value)
        found[0], found[1] = smallest.value, largest.value
        strange = [code.variable(0.0, FLOAT) for _ in range(2)]
        with code.loop(0, count, step) as i:
            number = source[i]
            for factor, seen in zip((smallest.value, code.constant(1.0, FLOAT)), strange, strict=True):
                whole = (number / factor).call("rint") * factor
                seen.value = (whole.differs(number) | (number < 0.0)).select(1.0, seen.value)
        for k, seen in enumerate(strange):
            found[2 + k] = seen.value


def _split(rows: Tensor, factor: float, planes: int) -> Planes | None:
    """`rows` as `planes` planes, or more if needed; None if numbers are no multiples of `factor`, or too
    large.
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
    given = {"source": rows, "bits": bits, "ones": ones, "levels": levels, **unit}
    _scan(parts, **given, inputs=inputs, rows=count, per_part=-(-count // parts), planes=planes)
    seen = reduce(or_, levels.flatten().tolist(), 0)
    if not 0 <= seen < 1 << MOST:
        return None
    if (needed := max(1, seen.bit_length())) > planes:
        return _split(rows, factor, needed)
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
    """Packs rows of floats into planes of bits; for each part, counts the ones and ors all levels.

    A level is a number divided by `factor`, or a value beyond all planes if that is no integer. `factor` and
    `inverse` are the bits of float32.
    """
    whole, rest = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    times, over = (number.to(INT).float_from_bits().spread(WORD) for number in (factor, inverse))
    strange = code.constant(_ODD, INT.of(VECTOR))
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        count, found = code.variable(0), code.variable(0, INT.of(VECTOR))
        first, last = part * per_part, ((part + 1) * per_part).smaller(rows)

        def seen(values: Value, target: Pointer) -> None:
            shifted = values * over + SHIFT
            level = shifted.float_bits() ^ SHIFT_BITS
            other = ((shifted - SHIFT) * times).differs(values)
            for lane in range(0, WORD, VECTOR):
                flagged = other.part(lane, VECTOR).select(strange, 0)
                found.value |= level.part(lane, VECTOR) | flagged
            for plane in range(planes):
                word = (level & (1 << plane)).differs(0).word()
                count.value += word.popcount()
                (target + rows * words * plane).store(word)

        with code.loop(first, last) as row:
            at, out = source + inputs * row, bits + words * row
            with code.loop(0, whole) as w:
                seen((at + WORD * w).load(WORD), out + w)
            with code.when(rest > 0):
                tail.copy(at + WORD * whole, rest)
                seen(tail.load(WORD), out + whole)
        ones[part] = count.value
        (levels + VECTOR * part).store(found.value)
