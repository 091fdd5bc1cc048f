"""Numbers as bits, 64 to a word: spikes in one bit plane, small whole numbers times a factor in several.

    input = factor * sum over k of 2^k * plane k

Sums of spikes, averages of spikes, and spikes scaled by dropout are such numbers. Each plane holds spikes, so
a product with such numbers is a product with spikes, with one scaled copy of the weights per plane.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hibana.runtime.kernels import (
    INT,
    LONG,
    Code,
    Floats,
    Longs,
    Pointer,
    Value,
    float_bits,
    kernel,
)
from hibana.spikes.simd.lists import SHIFT, SHIFT_BITS, WORD, words_of
from hibana.spikes.simd.rows import VECTOR

__all__ = ["ONE", "Planes", "density_of", "join_planes", "pack_binary", "pack_bits", "pack_integers"]
__all__ += ["pack_multiples", "sampled_density"]

MOST_PLANES = 4
"""Planes at most: numbers up to 15."""
SAMPLED_WORDS, SAMPLED_NUMBERS = 128, 2048
"""Words of 64 numbers that are tested for spikes, and numbers that suggest a factor, before all are read."""
ONE = (1.0,)
"""The scales of spikes: one plane, factor 1."""
NOT_A_MULTIPLE = 1 << 30
"""Stands for the quotient of a number that is no multiple of the factor: larger than any that is packed."""


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


def pack_bits(rows: Tensor) -> tuple[Tensor, float | None]:
    """The bits ``[rows, words]`` of contiguous `rows`, and the density of ones, or None if not binary."""
    count, inputs = rows.shape
    bits = torch.empty(1, count, -(-inputs // WORD), dtype=torch.int64, device="cpu")
    ones, level_bits = scan(rows, bits, inputs)
    return bits[0], ones / max(1, count * inputs) if level_bits in (0, 1) else None


def pack_binary(rows: Tensor) -> Planes | None:
    """Contiguous `rows` of 0 and 1 as one bit plane; None for other numbers. A sample is tested first."""
    if sampled_density(rows) is None:
        return None
    bits, density = pack_bits(rows)
    return None if density is None else Planes(bits[None], density)


def sampled_density(numbers: Tensor) -> float | None:
    """The density of ones in a sample of `numbers`, which fill their memory; None if any is not 0 or 1.

    The sample is SAMPLED_WORDS words or more of 64 consecutive numbers. Their stride is odd: with an even
    one, all sampled words could lie in the same columns. The scan runs on the calling thread: its result is
    often that torch computes the product, and then no other thread should be woken.
    """
    words = numbers.numel() // WORD
    if not words:
        return pack_bits(numbers.as_strided((1, numbers.numel()), (1, 1)))[1]
    step = words // SAMPLED_WORDS | 1
    count = -(-words // step)
    bits = torch.empty(1, count, 1, dtype=torch.int64, device="cpu")
    ones, level_bits = scan(numbers, bits, WORD, step=step, threads=1)
    return ones / (count * WORD) if level_bits in (0, 1) else None


def pack_integers(numbers: Tensor, rows: Callable[[], Tensor]) -> Planes | None:
    """Packs numbers into bit planes; None unless all are a factor times 0, 1, …, 15.

    Each multiple of the factor, rounded to float32, must equal its number exactly.

    Args:
        numbers: the numbers, in any order that fills their memory; a sample of them suggests the factor.
        rows: returns the numbers as contiguous rows.
    """
    for factor, plane_count in _candidate_factors(numbers):
        planes = pack_multiples(rows(), factor, plane_count)
        if planes is not None:
            return planes
    return None


def _candidate_factors(numbers: Tensor) -> list[tuple[float, int]]:
    """Factors that all sampled `numbers` are small multiples of, each with the bits that the multiples need.

    `numbers` must fill their memory.
    """
    memory = numbers.as_strided((numbers.numel(),), (1,))
    values = np.unique(memory[:: numbers.numel() // SAMPLED_NUMBERS | 1].numpy())
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


def pack_multiples(rows: Tensor, factor: float = 1.0, planes: int = 1) -> Planes | None:
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
        return pack_multiples(rows, factor, needed)
    return Planes(bits[:needed], ones / max(1, needed * count * inputs), factor)


def density_of(bits: Tensor, inputs: int) -> float:
    """The density of ones in `bits`, ``[rows, words]``, with `inputs` bits a row."""
    parts = torch.get_num_threads()
    counts = torch.empty(parts, dtype=torch.int64, device="cpu")
    _count(parts, bits=bits, counts=counts, words=bits.numel(), parts=parts)
    return int(counts.sum()) / max(1, bits.shape[0] * inputs)


@kernel
def _count(
    code: Code, begin: Value, end: Value, *, bits: Longs, counts: Longs, words: Value, parts: Value
) -> None:
    """Counts the ones of each of `parts` parts of the `words` of `bits`."""
    with code.loop(begin, end) as part:
        first, last = _share(words, part, parts)
        total = code.variable(0, LONG.of(VECTOR))
        for word, mask in code.vectors(last - first, VECTOR):
            total.value += (bits + (first + word)).load(VECTOR, mask).popcount()
        counts[part] = total.value.sum()


def scan(
    source: Tensor, bits: Tensor, inputs: int, factor: float = 1.0, step: int = 1, threads: int = 0
) -> tuple[int, int]:
    """Packs every `step`-th row of `source` into bit planes: plane k gets bit k of each number / `factor`.

    Args:
        source: numbers, in rows of `inputs`.
        bits: the result, ``[planes, rows, words]``, int64.
        inputs: numbers of a row.
        factor: a number; all numbers must be small multiples of it.
        step: distance from one packed row to the next.
        threads: number of threads; 0 for all.

    Returns:
        The number of set bits, and the quotients of all numbers and `factor`, combined by "or". A quotient
        that is no integer counts as NOT_A_MULTIPLE.

    Raises:
        OverflowError: if `factor` or its inverse is too large for float32.
    """
    parts, (planes, rows, _) = threads or torch.get_num_threads(), bits.shape
    results = torch.empty(parts, 1 + VECTOR, dtype=torch.int64, device="cpu")
    tensors = {"source": source, "bits": bits, "results": results}
    unit = {"factor": float_bits(factor), "inverse": float_bits(1 / factor), "scales": factor != 1.0}
    _scan(parts, **tensors, **unit, inputs=inputs, rows=rows, step=step, parts=parts, planes=planes)
    ones, *levels = zip(*results.tolist(), strict=True)
    return sum(ones), reduce(or_, [level for part in levels for level in part])


@kernel
def _scan(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    bits: Longs,
    results: Longs,
    inputs: Value,
    rows: Value,
    step: Value,
    parts: Value,
    factor: Value,
    inverse: Value,
    planes: int,
    scales: bool,
) -> None:
    """The kernel of :func:`scan`; one work item is one of `parts` parts of the rows.

    Its `results` are the number of ones, and all quotients, combined by "or" in VECTOR lanes. `factor` and
    `inverse` are the bits of float32; they are 1 unless the kernel `scales`.
    """
    full_words, remainder = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    factors, inverses = (number.to(INT).float_from_bits().spread(WORD) for number in (factor, inverse))
    not_multiple = code.constant(NOT_A_MULTIPLE, INT.of(VECTOR))
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        count, level_bits = code.variable(0), code.variable(0, INT.of(VECTOR))
        first, last = _share(rows, part, parts)

        def pack(values: Value, target: Pointer) -> None:
            """Packs 64 numbers into one word of each plane, counts the ones, and ors the levels."""
            shifted = (values * inverses if scales else values) + SHIFT
            level, rounded = shifted.float_bits() ^ SHIFT_BITS, shifted - SHIFT
            differs = (rounded * factors if scales else rounded).differs(values)
            for lane in range(0, WORD, VECTOR):
                flag = differs.part(lane, VECTOR).select(not_multiple, 0)
                level_bits.value |= level.part(lane, VECTOR) | flag
            for plane in range(planes):
                word = (level & (1 << plane)).differs(0).word()
                count.value += word.popcount()
                (target + rows * words * plane).store(word)

        with code.loop(first, last) as row:
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, full_words) as w:
                pack((at + WORD * w).load(WORD), out + w)
            with code.when(remainder > 0):
                tail.copy(at + WORD * full_words, remainder)
                pack(tail.load(WORD), out + full_words)
        result = results + (1 + VECTOR) * part
        result[0] = count.value
        (result + 1).store(level_bits.value.to(LONG))


def _share(count: Value, part: Value, parts: Value) -> tuple[Value, Value]:
    """The range of `count` items that part number `part` of `parts` processes: first, and last plus one."""
    size = (count + parts - 1) // parts
    return (part * size).smaller(count), ((part + 1) * size).smaller(count)
