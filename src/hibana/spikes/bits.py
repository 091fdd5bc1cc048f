"""Numbers as bits, 64 to a word: packs numbers into bits, counts bits, and compares bits with numbers."""

from functools import reduce
from math import gcd
from operator import or_

import torch
from torch import Tensor

from hibana.runtime.kernels import (
    INT,
    LONG,
    Bytes,
    Code,
    Floats,
    Ints,
    Longs,
    Pointer,
    Value,
    float_bits,
    kernel,
)
from hibana.spikes.simd.lists import SHIFT, SHIFT_BITS, WORD, words_of
from hibana.spikes.simd.rows import VECTOR

__all__ = ["density_of", "matching_ones", "pack_bits", "sampled_density", "scan"]

COMPARED_LENGTH = 4096
"""Numbers of a row in :func:`matching_ones`, at most; rows are divided among threads."""
SAMPLE = 128
"""Words of 64 numbers that are sampled before all numbers are scanned."""
NOT_A_MULTIPLE = 1 << 30
"""Stands for the quotient of a number that is no multiple of the factor: larger than any that is packed."""
OCTET = 8
"""Bits of a byte."""


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
        counts[part] = _count_ones(code, bits + first, last - first)


def matching_ones(numbers: Tensor, planes: Tensor) -> int | None:
    """The number of ones in `planes` if these bits are exactly the `numbers`, else None.

    Args:
        numbers: a tensor without gaps in memory.
        planes: bits ``[planes, pieces, bytes]``; all pieces have equally many numbers, in memory order,
            and are padded to bytes or words.
    """
    if not numbers.numel():
        return 0
    plane_count, pieces, pitch = planes.shape
    length = row_length = numbers.numel() // pieces
    if length % WORD == 0 and length == pitch * OCTET:
        row_length = gcd(length, COMPARED_LENGTH)
        pieces, pitch = pieces * (length // row_length), row_length // OCTET
    parts = torch.get_num_threads()
    results = torch.empty(2 * parts, dtype=torch.int64, device="cpu")
    sizes = {
        "rows": pieces,
        "row_length": row_length,
        "pitch": pitch,
        "plane": pieces * pitch,
        "parts": parts,
    }
    _compare(parts, numbers=numbers, bits=planes, results=results, **sizes, planes=plane_count)
    ones_and_differences = results.tolist()
    return None if any(ones_and_differences[1::2]) else sum(ones_and_differences[::2])


@kernel
def _compare(
    code: Code,
    begin: Value,
    end: Value,
    *,
    numbers: Floats,
    bits: Bytes,
    results: Longs,
    rows: Value,
    row_length: Value,
    pitch: Value,
    plane: Value,
    parts: Value,
    planes: int,
) -> None:
    """Compares `rows` of `row_length` numbers with `bits`; each part of the rows writes two `results`.

    The first is the number of ones in `bits`, the second is not zero if any number differs from its bits.
    `bits` has `pitch` bytes per row and `plane` bytes per plane.
    """
    with code.loop(begin, end) as part:
        wrong_bits, wrong_values = code.variable(0), code.variable(0, INT.of(OCTET))

        def compare(values: Value, at: Bytes, width: int) -> None:
            """Compares a vector of `width` numbers with the bits at the address `at` of the first plane."""
            if planes == 1:
                plane_bits = [values.differs(0.0)]
                wrong = plane_bits[0].select(values.float_bits() ^ float_bits(1.0), 0)
            else:
                shifted = values + SHIFT
                level, is_fraction = shifted.float_bits() ^ SHIFT_BITS, (shifted - SHIFT).differs(values)
                plane_bits = [(level & (1 << k)).differs(0) for k in range(planes)]
                wrong = is_fraction.select(level.constant(level.type, -1), level & -(1 << planes))
            for lane in range(0, width, OCTET):
                wrong_values.value |= wrong.part(lane, OCTET)
            for k, computed in enumerate(plane_bits):
                stored = (at + plane * k).of(Longs).load(align=1) if width == WORD else (at + plane * k)[0]
                wrong_bits.value |= (computed.word() ^ stored).to(LONG)

        first, last = _share(rows, part, parts)
        with code.loop(first, last) as row:
            at, row_bits = numbers + row * row_length, bits + row * pitch
            full_words = row_length // WORD
            with code.loop(0, full_words) as word:
                compare((at + word * WORD).load(WORD), row_bits + word * (WORD // OCTET), WORD)
            with code.loop(full_words * WORD, row_length, OCTET) as k:
                mask = code.first_lanes((row_length - k).smaller(OCTET), OCTET)
                compare((at + k).load(OCTET, mask), row_bits + k // OCTET, OCTET)
        words = plane * planes // LONG.size
        first, last = _share(words, part, parts)
        ones = code.variable(_count_ones(code, bits.of(Longs) + first, last - first))
        with code.when(part.equals(0)), code.loop(words * LONG.size, plane * planes) as k:
            ones.value += (bits + k)[0].popcount().to(LONG)
        results[2 * part] = ones.value
        results[2 * part + 1] = wrong_bits.value | wrong_values.value.differs(0).word().to(LONG)


def _share(count: Value, part: Value, parts: Value) -> tuple[Value, Value]:
    """The range of `count` items that part number `part` of `parts` processes: first, and last plus one."""
    size = (count + parts - 1) // parts
    return (part * size).smaller(count), ((part + 1) * size).smaller(count)


def _count_ones(code: Code, words: Pointer, count: Value) -> Value:
    """The number of set bits in `count` consecutive `words`, which may begin at any byte."""
    total = code.variable(0, LONG.of(8))
    for word, mask in code.vectors(count, 8):
        total.value += (words + word).load(8, mask, align=1).popcount()
    return total.value.sum()


def scan(
    source: Tensor, bits: Tensor, inputs: int, factor: float = 1.0, step: int = 1, threads: int = 0
) -> tuple[int, int]:
    """Packs every `step`-th row of `source` into bit planes: plane k gets bit k of each number / `factor`.

    Args:
        source: numbers, in rows of `inputs`.
        bits: ``[planes, rows, words]``, int64, for the result.
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
    ones = torch.empty(parts, dtype=torch.int64, device="cpu")
    levels = torch.empty(parts, VECTOR, dtype=torch.int32, device="cpu")
    unit = {"factor": float_bits(factor), "inverse": float_bits(1 / factor)}
    tensors = {"source": source, "bits": bits, "ones": ones, "levels": levels}
    _scan(parts, **tensors, **unit, inputs=inputs, rows=rows, step=step, parts=parts, planes=planes)
    return int(ones.sum()), reduce(or_, levels.flatten().tolist())


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
    step: Value,
    parts: Value,
    factor: Value,
    inverse: Value,
    planes: int,
) -> None:
    """The kernel of :func:`scan`; one work item is one of `parts` parts of the rows.

    For each part it counts the ones and combines all quotients by "or". `factor` and `inverse` are the bits
    of float32.
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
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, full_words) as w:
                pack((at + WORD * w).load(WORD), out + w)
            with code.when(remainder > 0):
                tail.copy(at + WORD * full_words, remainder)
                pack(tail.load(WORD), out + full_words)
        ones[part] = count.value
        (levels + VECTOR * part).store(level_bits.value)
