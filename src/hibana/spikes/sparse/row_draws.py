"""Kernel that draws the targets, delays and weights of each source neuron, and sorts them.

Random numbers are a function of a projection's seed, of the row, and of the number of the synapse in the
projection's part of the row (:mod:`hibana.compiler.generator`), so that threads can share the rows.
"""

import operator
from typing import NamedTuple

from hibana.compiler import generator
from hibana.compiler.cpu.draws import VectorNumbers, rotate_left
from hibana.compiler.generator import key_schedule, threefry
from hibana.runtime.kernels import BYTE, INT, LONG, Bytes, Code, Floats, Ints, Longs, Pointer, Value, kernel

__all__ = ["CHOICES", "MAX_ROW", "Entry", "fill_rows"]

LANES = 16
"""Counters of the random generator in a vector."""
TARGETS, DELAYS, WEIGHTS = range(3)
"""Streams of random numbers: added to the upper word of the seed."""
CHOICES = 256
"""Number of different delays."""
INDEX_BITS = 25
"""Low bits of a sort key: the synapse's index in its row. Above are 31 bits of a target and 8 of a delay."""
MAX_ROW = 1 << INDEX_BITS
"""Most synapses of a source neuron."""


class Entry(NamedTuple):
    """A projection in the kernel's table of 64-bit integers."""

    source_begin: int
    source_end: int
    target_begin: int
    target_count: int
    starts: int
    """Address of the index of the first synapse of each row of the projection, ``[rows + 1]``, int64."""
    targets: int
    """Address of the targets, ``[synapses]``, int32, counted from `target_begin`; 0 if they are drawn."""
    repeats: int
    """1 if a row may have the same target several times, else 0."""
    seed: int
    is_normal: int
    """1 if weights are made of standard normal numbers, 0 if of uniform numbers in [0, 1)."""


class _Projection:
    """The entry `index` of the table, with the random numbers of one row."""

    def __init__(self, code: Code, table: Pointer, index: Value, row: Value) -> None:
        self.code = code
        self.fields = {name: table[index * len(Entry._fields) + i] for i, name in enumerate(Entry._fields)}
        self.row = row - self.fields["source_begin"]
        self.is_inside = (row >= self.fields["source_begin"]) & (row < self.fields["source_end"])

    def words(self, stream: int, first: Value) -> tuple[Value, Value]:
        """Two random words for each of the counters from `first`."""
        seed = self.fields["seed"]
        schedule = key_schedule(seed.to(INT), (seed >> 32).to(INT) + stream, operator.add, operator.xor)
        keys = [(x.spread(LANES), y.spread(LANES)) for x, y in schedule]
        counter = first.to(INT).spread(LANES) + self.code.lane_indices(INT.of(LANES))
        row = self.row.to(INT).spread(LANES)
        return threefry(keys, (counter, row), operator.add, rotate_left, operator.xor)

    def draw_targets(self, keys: Pointer, size: Value, used: Pointer) -> None:
        """Writes `size` random targets to `keys`; `used` has a zero bit for each target neuron.

        Sets of different targets are drawn by Floyd's algorithm (Bentley & Floyd 1987, "A sample of
        brilliance"): of n neurons, the i-th target is uniform in 0 ... n - size + i, and is replaced by n -
        size + i if it occurred before.
        """
        code, is_set = self.code, self.fields["repeats"].equals(0)
        last = self.fields["target_count"] - is_set.select(size, 1)
        with code.loop(0, size, LANES) as i:
            lanes = i.spread(LANES) + code.lane_indices(LONG.of(LANES))
            count = is_set.select(lanes, lanes.lift(0)) + (last + 1).spread(LANES)
            high, low = (word.to(LONG) for word in self.words(TARGETS, i))
            # The upper 64 bits of the product of a random word of 64 bits and `count`, which has 32 bits.
            (keys + i).store((high * count + ((low * count) >> 32)) >> 32)
        with code.when(is_set):
            with code.loop(0, size) as i:
                target, bit = keys[i], code.constant(1)
                occurred = used[target // 64] & (bit << (target % 64))
                target = occurred.differs(0).select(last + i, target)
                keys[i] = target
                used[target // 64] = used[target // 64] | (bit << (target % 64))
            with code.loop(0, size) as i:
                used[keys[i] // 64] = 0

    def add_delays(
        self, keys: Pointer, size: Value, noise: Pointer, thresholds: Pointer, target_bits: Value
    ) -> None:
        """Adds a random delay above the target of each of `size` keys; `noise` is memory for as many words.

        A delay is the number of `thresholds`, in increasing order, that are at most a random word.
        """
        with self.code.loop(0, size, 2 * LANES) as i:
            for half, words in enumerate(self.words(DELAYS, i // 2)):
                (noise + i + half * LANES).store(words)
        with self.code.loop(0, size) as i:
            word, delay = noise[i].to(LONG), self.code.constant(0)
            step = CHOICES // 2
            while step:
                # An addition instead of a selection: LLVM would make it a branch, which is mispredicted.
                delay = delay + (thresholds[delay + (step - 1)] <= word).to(LONG) * step
                step //= 2
            keys[i] = keys[i] + (delay << target_bits)

    def draw_weights(self, weights: Pointer, size: Value, numbers: Pointer) -> None:
        """Writes `size` random weights to `weights`, and up to ``2 LANES`` further numbers."""
        code = self.code
        least, most, scale, offset, low, high = (numbers[i].spread(LANES) for i in range(6))
        is_normal = self.fields["is_normal"].differs(0)
        written, counter = code.variable(0), code.variable(0)
        with code.do_while() as again:
            words = self.words(WEIGHTS, counter.value)
            for normal, word in zip(generator.normal(VectorNumbers, *words), words, strict=True):
                number = is_normal.select(normal, generator.uniform(VectorNumbers, word))
                is_accepted = (number >= least) & (number <= most)
                weight = number * scale + offset
                weight = (weight < low).select(low, weight)
                weight = (weight > high).select(high, weight)
                (weights + written.value).store(weight.compressed(is_accepted))
                written.value += is_accepted.word().popcount().to(LONG)
            counter.value += LANES
            again(written.value < size)


def _sort(
    code: Code, keys: Pointer, spare: Pointer, counts: Pointer, size: Value, passes: Value, digit_bits: Value
) -> Pointer:
    """Sorts `size` keys by the bits above their index; returns `keys` or `spare`, which holds the result.

    A radix sort: each of the `passes` sorts by the next `digit_bits` bits, in memory for as many `counts`.
    """
    digits = code.constant(1) << digit_bits
    with code.loop(0, passes) as i:
        is_odd = (i & 1).differs(0)
        source, target = keys.replace_if(is_odd, spare), spare.replace_if(is_odd, keys)
        shift = i * digit_bits + INDEX_BITS
        counts.clear(digits)
        with code.loop(0, size) as k:
            place = counts + ((source[k] >> shift) & (digits - 1))
            place.store(place.load() + 1)
        total = code.variable(0)
        with code.loop(0, digits) as digit:
            count = counts[digit]
            counts[digit] = total.value
            total.value += count
        with code.loop(0, size) as k:
            key = source[k]
            place = counts + ((key >> shift) & (digits - 1))
            index = place.load()
            target[index] = key
            place.store(index + 1)
    return keys.replace_if((passes & 1).differs(0), spare)


@kernel
def fill_rows(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bounds: Longs,
    row_starts: Longs,
    table: Longs,
    thresholds: Longs,
    numbers: Floats,
    targets: Ints,
    delays: Bytes,
    weights: Floats,
    projections: Value,
    longest: Value,
    words: Value,
    target_bits: Value,
    passes: Value,
    digit_bits: Value,
    has_delays: bool,
    has_weights: bool,
) -> None:
    """Writes the synapses of all `projections` row by row, in order of delay and target.

    Work item i is the rows from ``bounds[i]`` to ``bounds[i + 1]``, of at most `longest` synapses each. Each
    projection has an :class:`Entry` in `table`, 256 `thresholds` of delays, and 6 `numbers`: smaller and
    larger random numbers than the first two are drawn again; the others are scale, offset, least and largest
    weight. `words` of 64 bits have at least one bit for each target neuron of a projection.
    """
    padded, digits = longest + 2 * LANES, code.constant(1) << digit_bits
    longs = [(Longs, size) for size in (padded, padded, digits, words)]
    with code.scratch(*longs, (Floats, padded)) as (keys, spare, counts, used, drawn):
        used.clear(words)
        with code.loop(bounds[begin], bounds[end]) as row:
            size = code.variable(0)
            with code.loop(0, projections) as index:
                projection = _Projection(code, table, index, row)
                fields, done = projection.fields, size.value
                with code.when(projection.is_inside):
                    starts = Longs.from_address(fields["starts"])
                    first = starts[projection.row]
                    count = starts[projection.row + 1] - first
                    with code.when(fields["targets"].equals(0)):
                        projection.draw_targets(keys + done, count, used)
                    with code.when(fields["targets"].differs(0)), code.loop(0, count) as i:
                        keys[done + i] = Ints.from_address(fields["targets"])[first + i].to(LONG)
                    with code.loop(done, done + count) as i:
                        keys[i] = keys[i] + fields["target_begin"]
                    if has_delays:
                        limits = thresholds + index * CHOICES
                        projection.add_delays(keys + done, count, spare.of(Ints), limits, target_bits)
                    if has_weights:
                        projection.draw_weights(drawn + done, count, numbers + index * 6)
                    size.value = done + count
            with code.loop(0, size.value) as i:
                keys[i] = (keys[i] << INDEX_BITS) | i
            result = _sort(code, keys, spare, counts, size.value, passes, digit_bits)
            begin_of_row = row_starts[row]
            with code.loop(0, size.value) as i:
                key, place = result[i], begin_of_row + i
                targets[place] = ((key >> INDEX_BITS) & ((code.constant(1) << target_bits) - 1)).to(INT)
                if has_delays:
                    delays[place] = (key >> (target_bits + INDEX_BITS)).to(BYTE)
                if has_weights:
                    weights[place] = drawn[key & (MAX_ROW - 1)]
