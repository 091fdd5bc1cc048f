"""Spikes as bits, 64 to a word: packing numbers into bits, counting bits, and comparing bits with numbers."""

from math import gcd

import torch
from torch import Tensor

from hibana.runtime.kernels import (
    FLOAT,
    INT,
    LONG,
    Bytes,
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

__all__ = ["density_of", "matching_ones", "pack_bits", "sampled_density"]

COMPARED_LENGTH = 4096
"""Numbers of a row in :func:`matching_ones`, at most; rows are divided among threads."""
SAMPLE = 128
"""Words of 64 numbers that are sampled before all numbers are scanned."""
OCTET = 8
"""Bits of a byte."""


def pack_bits(rows: Tensor) -> tuple[Tensor, float | None]:
    """The bits ``[rows, words]`` of contiguous `rows`, and the density of ones, or None if not binary."""
    inputs = rows.shape[1]
    bits = torch.empty(rows.shape[0], -(-inputs // 64), dtype=torch.int64, device="cpu")
    ones, not_binary = _scan_rows(rows, bits, inputs)
    return bits, None if not_binary else ones / max(1, bits.shape[0] * inputs)


def sampled_density(numbers: Tensor) -> float | None:
    """The density of ones in a sample of `numbers`, which fill their memory; None if any is not 0 or 1.

    The sample is SAMPLE words or more of 64 consecutive numbers. Their stride is odd: with an even one, all
    sampled words could lie in the same columns. The scan runs on the calling thread: its result is often that
    torch computes the product, and then no other thread should be woken.
    """
    words = numbers.numel() // WORD
    if not words:
        return pack_bits(numbers)[1]
    step = words // SAMPLE | 1
    count = -(-words // step)
    buffer = torch.empty(count + 2, dtype=torch.int64, device="cpu")
    counts = buffer.narrow(0, count, 2)
    _scan(1, source=numbers, bits=buffer, counts=counts, inputs=WORD, rows=count, step=step, parts=1)
    ones, not_binary = counts.tolist()
    return None if not_binary else ones / (count * WORD)


def density_of(bits: Tensor, inputs: int) -> float:
    """The density of ones in `bits`, ``[rows, words]``, with `inputs` bits a row."""
    return _scan_rows(None, bits, inputs)[0] / max(1, bits.shape[0] * inputs)


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


def _scan_rows(source: Tensor | None, bits: Tensor, inputs: int) -> tuple[int, int]:
    """Runs :func:`_scan`; returns the number of ones, and a number above 0 if `source` is not binary."""
    count, parts = bits.shape[0], torch.get_num_threads()
    counts = torch.empty(parts, 2, dtype=torch.int64, device="cpu")
    tensors = {"source": source, "bits": bits, "counts": counts}
    _scan(parts, **tensors, inputs=inputs, rows=count, step=1, parts=parts)
    flat = counts.view(-1).tolist()
    return sum(flat[::2]), sum(flat[1::2])


@kernel
def _scan(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    bits: Longs,
    counts: Longs,
    inputs: Value,
    rows: Value,
    step: Value,
    parts: Value,
) -> None:
    """Packs every `step`-th row of `source` into a row of `bits`; each part of the rows writes two `counts`.

    The first is the number of ones, the second is 1 if any number is neither 0 nor 1. If `source` is null,
    the ones of `bits` are counted.
    """
    full_words, remainder = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        ones, not_binary = code.variable(0), code.variable(0, INT.of(VECTOR))
        one = code.constant(1.0, FLOAT.of(WORD)).float_bits()
        first, last = _share(rows, part, parts)

        def packed(values: Value) -> Value:
            """The word of bits of 64 numbers; notes whether any number is neither 0 nor 1."""
            is_one = values.differs(0.0)
            difference = is_one.select(values.float_bits() ^ one, 0)
            for lane in range(0, WORD, VECTOR):
                not_binary.value |= difference.part(lane, VECTOR)
            return is_one.word()

        def store(target: Pointer, word: Value) -> None:
            """Writes a word to `target` and counts its ones."""
            target.store(word)
            ones.value += word.popcount()

        with code.when(source.is_not_null()), code.loop(first, last) as row:
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, full_words) as w:
                store(out + w, packed((at + WORD * w).load(WORD)))
            with code.when(remainder > 0):
                tail.copy(at + WORD * full_words, remainder)
                store(out + full_words, packed(tail.load(WORD)))
        with code.when(~source.is_not_null()):
            ones.value = _count_ones(code, bits + words * first, words * (last - first))
        counts[2 * part] = ones.value
        counts[2 * part + 1] = not_binary.value.differs(0).word().differs(0).to(LONG)
