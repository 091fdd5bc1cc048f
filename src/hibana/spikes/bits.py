"""Numbers as bits, 64 to a word: packs numbers into bits, and counts bits."""

from functools import reduce
from operator import or_

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

__all__ = ["density_of", "pack_bits", "sampled_density", "scan"]

SAMPLE = 128
"""Words of 64 numbers that are sampled before all numbers are scanned."""
NOT_A_MULTIPLE = 1 << 30
"""Stands for the quotient of a number that is no multiple of the factor: larger than any that is packed."""


def pack_bits(rows: Tensor) -> tuple[Tensor, float | None]:
    """The bits ``[rows, words]`` of contiguous `rows`, and the density of ones, or None if not binary."""
    count, inputs = rows.shape
    bits = torch.empty(1, count, -(-inputs // WORD), dtype=torch.int64, device="cpu")
    ones, level_bits = scan(rows, bits, inputs)
    return bits[0], ones / max(1, count * inputs) if level_bits in (0, 1) else None


def sampled_density(numbers: Tensor) -> float | None:
    """The density of ones in a sample of `numbers`, which fill their memory; None if any is not 0 or 1.

    The sample is SAMPLE words or more of 64 consecutive numbers. Their stride is odd: with an even one, all
    sampled words could lie in the same columns. The scan runs on the calling thread: its result is often that
    torch computes the product, and then no other thread should be woken.
    """
    words = numbers.numel() // WORD
    if not words:
        return pack_bits(numbers.as_strided((1, numbers.numel()), (1, 1)))[1]
    step = words // SAMPLE | 1
    count = -(-words // step)
    bits = torch.empty(1, count, 1, dtype=torch.int64, device="cpu")
    ones, level_bits = scan(numbers, bits, WORD, step=step, threads=1)
    return ones / (count * WORD) if level_bits in (0, 1) else None


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
