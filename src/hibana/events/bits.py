"""Spikes as bits, 64 to a word: made of numbers, counted, and compared with the numbers they were kept of."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.events.lanes.lists import WORD, bits_from, first_bits, words_of
from hibana.events.lanes.rows import LANES
from hibana.native import BYTE, FLOAT, INT, LONG, Bytes, Code, Floats, Longs, Pointer, Sized, Value, kernel

__all__ = ["agree", "are_still", "bits_of", "density_of", "sampled_bits"]

SAMPLE = 256
"""Words of 64 numbers that are compared with the bits kept of them."""
OCTET = 8
"""Bits of a byte."""


def bits_of(rows: Tensor, step: int = 1) -> tuple[Tensor, float | None]:
    """The bits ``[rows / step, words]`` of contiguous `rows`, and the density of ones: None if not binary."""
    inputs = rows.shape[1]
    bits = torch.empty(-(-rows.shape[0] // step), -(-inputs // 64), dtype=torch.int64, device="cpu")
    spikes, strange = _scanned(rows, bits, inputs, step)
    return bits, None if strange else spikes / max(1, bits.shape[0] * inputs)


def density_of(bits: Tensor, inputs: int) -> float:
    """The density of ones in `bits`, ``[rows, words]``, of rows of `inputs`."""
    return _scanned(None, bits, inputs, 1)[0] / max(1, bits.shape[0] * inputs)


class Sampling(NamedTuple):
    """Which of so many numbers are looked at: some `rows` of `wide`, every so many.

    Of few numbers all, of many an odd step apart.
    """

    rows: int
    wide: int
    every: int

    @classmethod
    def of(cls, count: int, steps: int) -> "Sampling":
        """Of the numbers of so many steps, or samples, one after the other."""
        length = count // steps
        wide = 64 if length % 64 == 0 else length
        return cls(count // wide, wide, count // (64 * SAMPLE) * 64 // wide | 1)


def sampled_bits(numbers: Tensor) -> Tensor:
    """The bits of a sample of `numbers`, which are spikes and fill their memory: for :func:`are_still`."""
    how = Sampling.of(numbers.numel(), numbers.shape[0])
    lying = numbers.detach().as_strided((how.rows, how.wide), (how.wide, 1))
    return bits_of(lying, how.every)[0].view(torch.uint8)


def are_still(numbers: Tensor, sample: Tensor, steps: int) -> bool:
    """Whether `numbers` are those of so many steps of which :func:`sampled_bits` gave this `sample`."""
    parts = torch.get_num_threads()
    return _alike(numbers, sample, parts, _sampling(numbers.numel(), steps, sample.shape, parts)) is not None


def agree(numbers: Tensor, kept: Tensor) -> int | None:
    """How many ones are in the bits `kept`, if a sample of `numbers` is as they say; else None.

    The numbers fill their memory without gaps. `kept` are planes, ``[planes, steps, ceil(N/8)]`` bytes of
    steps of N numbers, in the order of memory. What ``.data`` or NumPy writes leaves no trace but this.
    """
    count, parts = numbers.numel(), torch.get_num_threads()
    return _alike(numbers, kept, parts, _comparing(count, kept.shape, parts)) if count else 0


def _alike(numbers: Tensor, kept: Tensor, parts: int, compare: Sized) -> int | None:
    """How many ones are in `kept`, if the numbers of a sample are what it says."""
    found = torch.empty(2 * parts, dtype=torch.int64, device="cpu")
    compare(parts, numbers=numbers, kept=kept, found=found)
    seen = found.tolist()
    return None if any(seen[1::2]) else sum(seen[::2])


@lru_cache(maxsize=1024)
def _comparing(count: int, kept: torch.Size, parts: int) -> Sized:
    """What compares so many numbers with planes of all bits that are `kept` of them."""
    planes, steps, _ = kept
    how = Sampling.of(count, steps)
    return _sized(how, planes, how.rows, kept.numel() // (planes * how.rows), how.every, parts)


@lru_cache(maxsize=1024)
def _sampling(count: int, steps: int, sample: torch.Size, parts: int) -> Sized:
    """What compares so many numbers of so many steps with a `sample` of their bits."""
    rows, pitch = sample
    return _sized(Sampling.of(count, steps), 1, rows, pitch, 1, parts)


def _sized(how: Sampling, planes: int, rows: int, pitch: int, step: int, parts: int) -> Sized:
    """What is kept is `planes` of `rows` of `pitch` bytes; those for the sample are a `step` apart."""
    sizes = {"pitch": pitch, "step": step, "plane": rows * pitch, "parts": parts, "planes": planes}
    return _compare.sized(**how._asdict(), **sizes)


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
    every: Value,
    pitch: Value,
    step: Value,
    plane: Value,
    parts: Value,
    planes: int,
) -> None:
    """For each part, how many ones are kept, and whether some of so many `rows` of numbers are unlike that.

    What is kept is `pitch` bytes a row; of every so many rows it lies a `step` of its rows apart. The planes
    lie as many bytes apart as one `plane` has.
    """
    with code.loop(begin, end) as part:
        different = code.variable(0, BYTE)
        octets, looked = (wide + (OCTET - 1)) // OCTET, (rows + every - 1) // every
        first, last = _share(looked, part, parts)
        with code.loop(first, last) as i, code.loop(0, octets) as k:
            there = code.first((wide - k * OCTET).smaller(OCTET), OCTET)
            values = (numbers + i * every * wide + k * OCTET).load(OCTET, there)
            at = kept + i * step * pitch + k
            said = code.constant(0.0, FLOAT.of(OCTET))
            for j in range(planes):
                said += (at + plane * j)[0].mask(OCTET).select(code.constant(2.0**j, FLOAT.of(OCTET)), 0.0)
            different.value |= values.differs(said).word()
        words = plane * planes // LONG.size
        first, last = _share(words, part, parts)
        spikes = code.variable(_ones(code, kept.of(Longs) + first, last - first))
        with code.when(part.equals(0)), code.loop(words * LONG.size, plane * planes) as k:
            spikes.value += (kept + k)[0].ones().to(LONG)
        found[2 * part] = spikes.value
        found[2 * part + 1] = different.value.to(LONG)


def _share(count: Value, part: Value, parts: Value) -> tuple[Value, Value]:
    """Which of so many are a part's: the first, and the one after the last."""
    each = (count + parts - 1) // parts
    return (part * each).smaller(count), ((part + 1) * each).smaller(count)


def _ones(code: Code, words: Pointer, count: Value) -> Value:
    """How many bits are set in so many `words`, which may begin at any byte."""
    total = code.variable(0, LONG.of(8))
    for word, there in code.vectors(count, 8):
        total.value += (words + word).load(8, there, align=1).ones()
    return total.value.total()


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

    Without floats the bits are known, and their ones are counted. Rows that lie together, but not each on
    lines of the cache, are read as one, and their bits cut out: a vector across two lines takes two loads.
    """
    whole, rest = inputs // WORD, inputs % WORD
    words = words_of(inputs)
    cut = source.given() & ((inputs & (LANES - 1)) > 0) & step.equals(1)
    with (
        code.scratch((Floats, WORD), (Longs, inputs + 3)) as (tail, together),
        code.loop(begin, end) as part,
    ):
        tail.clear(WORD)
        spikes, strange = code.variable(0), code.variable(0, INT.of(LANES))
        one = code.constant(1.0, FLOAT.of(WORD)).integer()
        first, last = _share(rows, part, parts)

        def seen(values: Value) -> Value:
            fired = values.differs(0.0)
            unlike = fired.select(values.integer() ^ one, 0)
            for lane in range(0, WORD, LANES):
                strange.value |= unlike.lanes(lane, LANES)
            return fired.word()

        def put(target: Pointer, word: Value) -> None:
            target.store(word)
            spikes.value += word.ones()

        with code.when(cut), code.loop(first, last, WORD) as top:
            block = (last - top).smaller(WORD)
            position, stop = top * inputs, (top + block) * inputs
            from_word, full = position // WORD, stop // WORD
            with code.loop(from_word, full) as w:
                together[w - from_word] = seen((source + WORD * w).load(WORD))
            with code.when(stop > full * WORD):
                tail.copy(source + full * WORD, stop - full * WORD)
                together[full - from_word] = seen(tail.load(WORD))
            with code.loop(0, block) as i:
                begun, out = position + inputs * i - from_word * WORD, bits + words * (top + i)
                with code.loop(0, whole) as w:
                    put(out + w, bits_from(together + w, begun))
                with code.when(rest > 0):
                    put(out + whole, bits_from(together + whole, begun) & first_bits(code, rest))
        with code.when(source.given() & ~cut), code.loop(first, last) as row:
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, whole) as w:
                put(out + w, seen((at + WORD * w).load(WORD)))
            with code.when(rest > 0):
                tail.copy(at + WORD * whole, rest)
                put(out + whole, seen(tail.load(WORD)))
        with code.when(~source.given()):
            spikes.value = _ones(code, bits + words * first, words * (last - first))
        counts[2 * part] = spikes.value
        counts[2 * part + 1] = strange.value.differs(0).word().differs(0).to(LONG)
