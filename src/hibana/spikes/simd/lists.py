"""Operations on words of 64 bits: list the set bits, transpose, and read or write at a bit offset."""

from hibana.runtime.kernels import SHORT, Code, Pointer, Value
from hibana.spikes.simd.rows import Row

__all__ = ["PLACES", "SHIFT", "SHIFT_BITS", "SLACK", "WORD", "append_bits", "bits_at", "first_bits"]
__all__ += ["put_bits", "transpose_bits", "words_of"]

WORD = 64
"""Bits of a word."""
_HALF = 32
"""Bits that one ``vpcompressw`` lists."""
SLACK = 64
"""Entries that may be written beyond the end of a list."""
PLACES = 1 << SHORT.bits
"""Number of different entries of a list, which have 16 bits."""
ALL = (1 << WORD) - 1
"""A word whose bits are all set."""
SHIFT = 1 << 23
"""2^23: if a smaller whole number is added to it in float32, the low bits of the sum are that number."""
SHIFT_BITS = 0x4B000000
"""The bits of the float32 2^23."""


def words_of(bits: Value) -> Value:
    """The number of 64-bit words that hold `bits` bits."""
    return (bits + (WORD - 1)) // WORD


def append_bits(code: Code, row: Row, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Appends `base` + the position of each set bit of `word` to ``index[n:]``; returns the new length.

    Entries must be less than :data:`PLACES`. Up to SLACK further entries are overwritten.
    """
    append = _append_by_vector if row.compresses else _append_in_fours
    return append(code, word, base, index, n)


def _append_in_fours(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """:func:`append_bits` with four set bits per iteration, so that few branches depend on the data."""
    stop, remaining, at = n + word.popcount(), code.variable(word), code.variable(n)
    with code.do_while() as again:
        for offset in range(4):
            index[at.value + offset] = (base + remaining.value.lowest_set_bit()).to(SHORT)
            remaining.value &= remaining.value - 1
        at.value += 4
        again(at.value < stop)
    return stop


def _append_by_vector(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """:func:`append_bits` with 32 bits of `word` per instruction ``vpcompressw``.

    It appends `base` + the position of each set bit to ``index[n:]``, and returns the new length.
    """
    places = base.to(SHORT).spread(_HALF) + code.lane_indices(SHORT.of(_HALF))
    (index + n).store(places.compressed(word.mask(_HALF)))
    count = (word & 0xFFFFFFFF).popcount()
    (index + n + count).store((places + _HALF).compressed((word >> _HALF).mask(_HALF)))
    return n + word.popcount()


def transpose_bits(code: Code, words: Pointer) -> None:
    """Transposes the 64 x 64 bits of `words` in place: exchanges bit j of word i and bit i of word j."""
    rows, octet = words.load(WORD), 8
    for width in (32, 16, 8):  # transposes the 2 x 2 blocks of `width` x `width` bits in each block
        mask = ALL // ((1 << width) + 1)  # alternating runs of `width` set and `width` clear bits
        upper = [row for row in range(WORD) if not row & width]
        low, high = (rows.shuffled(rows, [row + offset for row in upper]) for offset in (0, width))
        low, high = (low & mask) | ((high & mask) << width), ((low >> width) & mask) | (high & (ALL - mask))
        order = [*upper, *(row + width for row in upper)]
        rows = low.shuffled(high, [order.index(row) for row in range(WORD)])
    words.store(rows)
    byte_order = [octet * row + byte for byte in range(octet) for row in range(octet)]
    with code.loop(0, WORD, octet) as first:  # 8 x 8 bits in each block of 8 words
        eight = words + first
        bytes_ = eight.load(octet).octets()
        bytes_ = bytes_.shuffled(bytes_, byte_order)
        for bit in range(octet):
            eight[bit] = (bytes_ & (1 << bit)).differs(0).word()


def bits_at(at: Pointer, position: Value) -> Value:
    """64 bits from bit `position` of the words at `at`; the word after the one with that bit is read too."""
    word, shift = at + (position >> 6), position & (WORD - 1)
    return (word[0] >> shift) | ((word[1] << ((WORD - 1) - shift)) << 1)


def first_bits(code: Code, count: Value) -> Value:
    """A word whose first `count` bits are set; `count` is 1 to 64."""
    return code.constant(-1) >> (WORD - count)


def put_bits(code: Code, at: Pointer, position: Value, source: Pointer, count: Value) -> None:
    """Writes the first `count` bits of `source` into the words at `at`, as bits `position` and following.

    The bits there must be zero, since the new bits are combined with them by "or". The word after the one
    with the last written bit is read and written too, without a change.
    """
    first, shift = at + (position >> 6), position & (WORD - 1)
    with code.loop(0, count, WORD) as start:
        bits = source[start // WORD] & first_bits(code, (count - start).smaller(WORD))
        word = first + start // WORD
        word[0] = word[0] | (bits << shift)
        word[1] = word[1] | ((bits >> 1) >> ((WORD - 1) - shift))
