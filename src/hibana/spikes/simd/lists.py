"""Words of 64 bits: their set bits as lists of indices, transposed, and extracted at bit offsets."""

from hibana.runtime.kernels import SHORT, Code, Pointer, Value
from hibana.spikes.simd.rows import Row

__all__ = [
    "PLACES",
    "SHIFT",
    "SHIFT_BITS",
    "SLACK",
    "WORD",
    "bits_from",
    "first_bits",
    "listed",
    "put_bits",
    "put_word",
    "transposed_bits",
    "words_of",
]

WORD = 64
"""Bits of a word."""
_HALF = 32
"""Bits that one ``vpcompressw`` lists."""
SLACK = 64
"""Entries that may be written beyond the end of a list."""
PLACES = 1 << SHORT.bits
"""Number of values of a list's entry, which has 16 bits."""
ALL = (1 << WORD) - 1
SHIFT = 1 << 23
"""2^23: added to a smaller whole number, the low bits of the float32 are that number."""
SHIFT_BITS = 0x4B000000


def words_of(bits: Value) -> Value:
    """The number of 64-bit words for so many bits."""
    return (bits + (WORD - 1)) // WORD


def listed(code: Code, row: Row, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Appends `base` + the position of each set bit of `word` to ``index[n:]``; returns the new length.

    Entries must be less than :data:`PLACES`. Up to SLACK entries more are written.
    """
    append = _listed_at_once if row.compresses else _listed_in_fours
    return append(code, word, base, index, n)


def _listed_in_fours(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Appends the positions of a word's set bits to `index`, four per iteration; the new count.

    Four at once, so that few branches depend on the number of bits.
    """
    stop, left, at = n + word.popcount(), code.variable(word), code.variable(n)
    with code.do_while() as again:
        for ahead in range(4):
            index[at.value + ahead] = (base + left.value.lowest_set_bit()).to(SHORT)
            left.value &= left.value - 1
        at.value += 4
        again(at.value < stop)
    return stop


def _listed_at_once(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Appends the positions of a word's set bits to `index`, 32 by one ``vpcompressw``; the new count."""
    places = base.to(SHORT).spread(_HALF) + code.lane_indices(SHORT.of(_HALF))
    (index + n).store(places.compressed(word.mask(_HALF)))
    count = (word & 0xFFFFFFFF).popcount()
    (index + n + count).store((places + _HALF).compressed((word >> _HALF).mask(_HALF)))
    return n + word.popcount()


def transposed_bits(code: Code, words: Pointer) -> None:
    """Transposes the 64 x 64 bits of `words` in place: bit j of word i and bit i of word j."""
    rows, octet = words.load(WORD), 8
    for width in (32, 16, 8):  # what this bit says of a row's place and of a byte's within it is exchanged
        mask = ALL // ((1 << width) + 1)  # in turn `width` bits that are set, and as many that aren't
        clear = [row for row in range(WORD) if not row & width]
        low, high = (rows.shuffled(rows, [row + more for row in clear]) for more in (0, width))
        low, high = (low & mask) | ((high & mask) << width), ((low >> width) & mask) | (high & (ALL - mask))
        taken = [*clear, *(row + width for row in clear)]
        rows = low.shuffled(high, [taken.index(row) for row in range(WORD)])
    words.store(rows)
    in_order = [octet * row + byte for byte in range(octet) for row in range(octet)]
    with code.loop(0, WORD, octet) as first:
        eight = words + first
        bytes_ = eight.load(octet).octets()
        bytes_ = bytes_.shuffled(bytes_, in_order)
        for bit in range(octet):
            eight[bit] = (bytes_ & (1 << bit)).differs(0).word()


def bits_from(at: Pointer, position: Value) -> Value:
    """64 bits from bit `position` on of the words at `at`; one word more than they fill is read."""
    word, shift = at + (position >> 6), position & (WORD - 1)
    return (word[0] >> shift) | ((word[1] << ((WORD - 1) - shift)) << 1)


def first_bits(code: Code, count: Value) -> Value:
    """A word of which the first `count` bits are set, 1 to 64."""
    return code.constant(-1) >> (WORD - count)


def put_bits(code: Code, at: Pointer, position: Value, source: Pointer, count: Value) -> None:
    """Ors `count` bits of `source` into the words at `at`, from bit `position` on."""
    with code.loop(0, count, WORD) as done:
        words = done // WORD
        put_word(at + words, position, source[words] & first_bits(code, (count - done).smaller(WORD)))


def put_word(at: Pointer, position: Value, bits: Value) -> None:
    """Ors a word of `bits` into the words at `at`, from bit `position` on; two words are written."""
    word, shift = at + (position >> 6), position & (WORD - 1)
    word[0] = word[0] | (bits << shift)
    word[1] = word[1] | ((bits >> 1) >> ((WORD - 1) - shift))
