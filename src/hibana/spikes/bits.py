"""Spikes as bits, 64 to a word: packed from numbers, counted, and compared with numbers."""

from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

from hibana.runtime.kernels import (
    FLOAT,
    INT,
    LONG,
    BoundLauncher,
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

__all__ = ["agree", "pack_bits", "density_of", "sampled_density"]

NEAR = 4096
"""Numbers of a row that :func:`agree` compares, at most; rows are divided among threads."""
OCTET = 8
"""Bits of a byte."""


def pack_bits(rows: Tensor, step: int = 1) -> tuple[Tensor, float | None]:
    """The bits ``[rows / step, words]`` of contiguous `rows`, and the density of ones: None if not binary."""
    inputs = rows.shape[1]
    bits = torch.empty(-(-rows.shape[0] // step), -(-inputs // 64), dtype=torch.int64, device="cpu")
    spikes, strange = _scanned(rows, bits, inputs, step)
    return bits, None if strange else spikes / max(1, bits.shape[0] * inputs)


def sampled_density(numbers: Tensor, words: int, step: int) -> float | None:
    """The density of ones in every `step`-th of so many `words`, each 64 `numbers` in memory; None if not all
    are 0 and 1.

    It is called to find out that a product is torch's, which no thread should be woken for.
    """
    count = -(-words // step)
    found = torch.empty(count + 2, dtype=torch.int64, device="cpu")
    counts = found.narrow(0, count, 2)
    _sampling(count, step)(1, source=numbers, bits=found, counts=counts)
    spikes, strange = counts.tolist()
    return None if strange else spikes / (count * WORD)


@lru_cache(maxsize=1024)
def _sampling(count: int, step: int) -> BoundLauncher:
    return _scan.bind(inputs=WORD, rows=count, step=step, parts=1)


def density_of(bits: Tensor, inputs: int) -> float:
    """The density of ones in `bits`, ``[rows, words]``, of rows of `inputs`."""
    return _scanned(None, bits, inputs, 1)[0] / max(1, bits.shape[0] * inputs)


def agree(numbers: Tensor, kept: Tensor) -> int | None:
    """The number of ones in the bits `kept`, if these are exactly the `numbers`; else None.

    Args:
        numbers: a tensor without gaps in memory.
        kept: planes, ``[planes, pieces, bytes]``, each piece of equally many numbers in the order of memory,
            padded to bytes or words.
    """
    if not numbers.numel():
        return 0
    planes, pieces, pitch = kept.shape
    length = wide = numbers.numel() // pieces
    if length % WORD == 0 and length == pitch * OCTET:
        wide = gcd(length, NEAR)
        pieces, pitch = pieces * (length // wide), wide // OCTET
    parts = torch.get_num_threads()
    found = torch.empty(2 * parts, dtype=torch.int64, device="cpu")
    sizes = {"rows": pieces, "wide": wide, "pitch": pitch, "plane": pieces * pitch, "parts": parts}
    _compare(parts, numbers=numbers, kept=kept, found=found, **sizes, planes=planes)
    seen = found.tolist()
    return None if any(seen[1::2]) else sum(seen[::2])


@kernel
def _compare(
    code: Code,
    begin: Value,
    end: Value,
    *,
    numbers: Floats,
    kept: Bytes,
    found: Longs,
    rows: Value,
    wide: Value,
    pitch: Value,
    plane: Value,
    parts: Value,
    planes: int,
) -> None:
    """For each part of the rows: the number of ones in `kept`, and whether any number differs from it.

    `kept` has `pitch` bytes per row and `plane` bytes per plane.
    """
    with code.loop(begin, end) as part:
        different = code.variable(0), code.variable(0, INT.of(OCTET))

        def compare(values: Value, at: Bytes, width: int) -> None:
            if planes == 1:
                set_ = [values.differs(0.0)]
                strange = set_[0].select(values.float_bits() ^ float_bits(1.0), 0)
            else:
                shifted = values + SHIFT
                level, other = shifted.float_bits() ^ SHIFT_BITS, (shifted - SHIFT).differs(values)
                set_ = [(level & (1 << k)).differs(0) for k in range(planes)]
                strange = other.select(level.constant(level.type, -1), level & -(1 << planes))
            for lane in range(0, width, OCTET):
                different[1].value |= strange.part(lane, OCTET)
            for k, each in enumerate(set_):
                said = (at + plane * k).of(Longs).load(align=1) if width == WORD else (at + plane * k)[0]
                different[0].value |= (each.word() ^ said).to(LONG)

        first, last = _share(rows, part, parts)
        with code.loop(first, last) as row:
            at, said = numbers + row * wide, kept + row * pitch
            whole = wide // WORD
            with code.loop(0, whole) as word:
                compare((at + word * WORD).load(WORD), said + word * (WORD // OCTET), WORD)
            with code.loop(whole * WORD, wide, OCTET) as k:
                there = code.first_lanes((wide - k).smaller(OCTET), OCTET)
                compare((at + k).load(OCTET, there), said + k // OCTET, OCTET)
        words = plane * planes // LONG.size
        first, last = _share(words, part, parts)
        spikes = code.variable(_ones(code, kept.of(Longs) + first, last - first))
        with code.when(part.equals(0)), code.loop(words * LONG.size, plane * planes) as k:
            spikes.value += (kept + k)[0].popcount().to(LONG)
        found[2 * part] = spikes.value
        found[2 * part + 1] = different[0].value | different[1].value.differs(0).word().to(LONG)


def _share(count: Value, part: Value, parts: Value) -> tuple[Value, Value]:
    """Which of so many are a part's: the first, and the one after the last."""
    each = (count + parts - 1) // parts
    return (part * each).smaller(count), ((part + 1) * each).smaller(count)


def _ones(code: Code, words: Pointer, count: Value) -> Value:
    """How many bits are set in so many `words`, which may begin at any byte."""
    total = code.variable(0, LONG.of(8))
    for word, there in code.vectors(count, 8):
        total.value += (words + word).load(8, there, align=1).popcount()
    return total.value.sum()


def _scanned(source: Tensor | None, bits: Tensor, inputs: int, step: int) -> tuple[int, int]:
    count, parts = bits.shape[0], torch.get_num_threads()
    found = torch.empty(parts, 2, dtype=torch.int64, device="cpu")
    given = {"source": source, "bits": bits, "counts": found}
    _scan(parts, **given, inputs=inputs, rows=count, step=step, parts=parts)
    seen = found.view(-1).tolist()
    return sum(seen[::2]), sum(seen[1::2])


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
    """Rows of floats to rows of bits; for each part, its spikes and whether any value is neither 0 nor 1.

    Without floats the bits are known, and their ones are counted.
    """
    whole, rest = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        spikes, strange = code.variable(0), code.variable(0, INT.of(VECTOR))
        one = code.constant(1.0, FLOAT.of(WORD)).float_bits()
        first, last = _share(rows, part, parts)

        def seen(values: Value) -> Value:
            fired = values.differs(0.0)
            unlike = fired.select(values.float_bits() ^ one, 0)
            for lane in range(0, WORD, VECTOR):
                strange.value |= unlike.part(lane, VECTOR)
            return fired.word()

        def put(target: Pointer, word: Value) -> None:
            target.store(word)
            spikes.value += word.popcount()

        with code.when(source.is_not_null()), code.loop(first, last) as row:
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, whole) as w:
                put(out + w, seen((at + WORD * w).load(WORD)))
            with code.when(rest > 0):
                tail.copy(at + WORD * whole, rest)
                put(out + whole, seen(tail.load(WORD)))
        with code.when(~source.is_not_null()):
            spikes.value = _ones(code, bits + words * first, words * (last - first))
        counts[2 * part] = spikes.value
        counts[2 * part + 1] = strange.value.differs(0).word().differs(0).to(LONG)
