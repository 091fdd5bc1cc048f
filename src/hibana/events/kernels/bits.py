"""Bits of spikes: taken from floats, listed, turned about, and cut out from between words."""

from hibana.events.kernels.rows import LANES, Row
from hibana.native import FLOAT, INT, LONG, SHORT, Code, Floats, Longs, Pointer, Value, kernel

__all__ = ["SLACK", "listed", "scan", "transposed_bits"]

WORD = 64
"""Bits of a word."""
SLACK = 64
"""Entries of a list that are written beyond its end."""
ALL = (1 << WORD) - 1


@kernel
def scan(
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
    per_part: Value,
) -> None:
    """Rows of floats to rows of bits; for each part, its spikes and whether any value is neither 0 nor 1.

    Without floats the bits are known, and their ones are counted.
    """
    whole, rest = inputs // WORD, inputs % WORD
    words = (inputs + (WORD - 1)) // WORD
    with code.scratch((Floats, WORD)) as (tail,), code.loop(begin, end) as part:
        tail.clear(WORD)
        spikes, strange = code.variable(0), code.variable(0, INT.of(LANES))
        one = code.constant(1.0, FLOAT.of(LANES)).integer()
        first, last = part * per_part, ((part + 1) * per_part).smaller(rows)

        def seen(values: Value, target: Pointer) -> None:
            fired = values.differs(0.0)
            for lane in range(0, WORD, LANES):
                some, lanes = values.lanes(lane, LANES), fired.lanes(lane, LANES)
                strange.value |= lanes.select(some.integer() ^ one, 0)
            word = fired.word()
            spikes.value += word.ones()
            target.store(word)

        with code.when(source.given()), code.loop(first, last) as row:
            at, out = source + inputs * row * step, bits + words * row
            with code.loop(0, whole) as w:
                seen((at + WORD * w).load(WORD), out + w)
            with code.when(rest > 0):
                tail.copy(at + WORD * whole, rest)
                seen(tail.load(WORD), out + whole)
        with code.when(~source.given()):
            total = code.variable(0, LONG.of(8))
            for word, there in code.vectors(words * (last - first).larger(0), 8):
                total.value += (bits + (words * first + word)).load(8, there).ones()
            spikes.value = total.value.total()
        counts[2 * part] = spikes.value
        counts[2 * part + 1] = strange.value.differs(0).word().differs(0).to(LONG)


def listed(code: Code, row: Row, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Appends `base` + the position of each bit of `word` to ``index[n:]``, and returns the new `n`.

    Writes more than that: `index` needs room for SLACK more.
    """
    return (_listed_at_once if row.compresses else _listed_in_fours)(code, word, base, index, n)


def _listed_in_fours(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """Four positions at a time without asking, so that no branch depends on how many there are."""
    stop, left, at = n + word.ones(), code.variable(word), code.variable(n)
    with code.repeat() as again:
        for ahead in range(4):
            index[at.value + ahead] = (base + left.value.lowest()).to(SHORT)
            left.value &= left.value - 1
        at.value += 4
        again(at.value < stop)
    return stop


def _listed_at_once(code: Code, word: Value, base: Value, index: Pointer, n: Value) -> Value:
    """By the instruction that puts the chosen of 32 places together."""
    places = base.to(SHORT).spread(32) + code.counted(SHORT.of(32))
    low, count = word.mask(32), (word & 0xFFFFFFFF).ones()
    (index + n).store(places.compressed(low))
    (index + n + count).store((places + 32).compressed((word >> 32).mask(32)))
    return n + word.ones()


def values_together(code: Code, row: Row, target: Pointer, source: Pointer, word: Value) -> None:
    """Writes those of the 64 floats at `source` whose bits in `word` are set, and up to SLACK floats more."""
    if row.compresses:
        for part in range(4):
            bits = word >> 16 * part
            target.store((source + 16 * part).load(16).compressed(bits.mask(16)))
            target = target + (bits & 0xFFFF).ones()
        return
    left, n = code.variable(word), code.variable(0)
    with code.when(word.differs(0)), code.repeat() as again:
        target[n.value] = source[left.value.lowest()]
        n.value += 1
        left.value &= left.value - 1
        again(left.value.differs(0))


def transposed_bits(code: Code, words: Pointer) -> None:
    """Transposes the 64 x 64 bits of `words` in place: bit j of word i and bit i of word j."""
    lanes = 8
    vectors = [(words + lanes * v).load(lanes) for v in range(WORD // lanes)]
    width = WORD // 2
    while width:
        mask = ALL // ((1 << width) + 1)  # in turn `width` bits that are set, and as many that aren't
        if width >= lanes:
            step = width // lanes
            for i in (i for i in range(len(vectors)) if not i & step):
                swapped = ((vectors[i] >> width) ^ vectors[i + step]) & mask
                vectors[i] = vectors[i] ^ (swapped << width)
                vectors[i + step] = vectors[i + step] ^ swapped
        else:
            lower = code.constant(sum(1 << lane for lane in range(lanes) if not lane & width)).mask(lanes)
            for i, vector in enumerate(vectors):
                other = vector.shuffled(vector, [lane ^ width for lane in range(lanes)])
                upwards = (((vector >> width) ^ other) & mask) << width
                downwards = ((other >> width) ^ vector) & mask
                vectors[i] = vector ^ lower.select(upwards, downwards)
        width //= 2
    for v, vector in enumerate(vectors):
        (words + lanes * v).store(vector)


def bits_from(at: Pointer, position: Value) -> Value:
    """64 bits from bit `position` on of the words at `at`; one word more than they fill is read."""
    word, shift = at + (position >> 6), position & (WORD - 1)
    return (word[0] >> shift) | ((word[1] << ((WORD - 1) - shift)) << 1)


def first_bits(code: Code, count: Value) -> Value:
    """A word of which the first `count` bits are set, 1 to 64."""
    return code.constant(-1) >> (WORD - count)


def put_bits(code: Code, at: Pointer, position: Value, source: Pointer, count: Value) -> None:
    """`count` bits at `source`, to where there are zeros at `at` from `position` on."""
    with code.loop(0, count, WORD) as done:
        bits = bits_from(source, done) & first_bits(code, (count - done).smaller(WORD))
        word, shift = at + ((position + done) >> 6), (position + done) & (WORD - 1)
        word[0] = word[0] | (bits << shift)
        word[1] = word[1] | ((bits >> 1) >> ((WORD - 1) - shift))
