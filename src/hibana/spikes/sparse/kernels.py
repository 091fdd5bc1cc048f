"""Kernels of sparse synapses: products with spikes and their gradients, and products with any numbers.

A row of synapses has one source neuron. The *offset* of a synapse is ``delay * outputs + target``: the
distance from the first sum of the current step to the sum that its weight is added to, in an array ``[steps,
outputs]``. Spikes are bits ``[steps * sequences, words]``. Without delays, each row of an input is a sequence
of one step.
"""

from collections.abc import Iterator

from hibana.runtime.kernels import (
    FLOAT,
    LONG,
    Code,
    Floats,
    Group,
    Ints,
    Longs,
    Pointer,
    Shorts,
    Value,
    kernel,
)
from hibana.spikes.simd.lists import SLACK, WORD, append_bits, words_of
from hibana.spikes.simd.rows import VECTOR, Row, transpose

__all__ = ["LANES", "forward", "input_gradient", "multiply_numbers", "weight_gradient"]

UNROLLED = 8
"""Synapses per iteration of the forward's loop."""
LISTED = 128
"""Words of spikes that are listed at a time."""
AHEAD = 4
"""Spikes from the one that is added to the one whose row is prefetched."""
LANES = 32
"""Rows that :func:`multiply_numbers` multiplies at a time: their numbers for 2048 inputs take 256 KiB."""


class Sizes(Group):
    """Sizes that the kernels of spikes take."""

    steps: Value
    sequences: Value
    inputs: Value
    outputs: Value
    reach: Value
    """The longest delay in steps."""


@kernel
def forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    row_starts: Longs,
    offsets: Ints,
    weight: Floats,
    bias: Floats,
    target: Floats,
    sizes: Sizes,
    row: Row,
) -> None:
    """Writes the sums ``[sequences, steps + reach, outputs]``.

    The last `reach` steps get delayed spikes only. A work item is one sequence. `bias` may be null.
    """
    outputs, words = sizes.outputs, words_of(sizes.inputs)
    rows = sizes.steps + sizes.reach
    with code.scratch(LIST) as (index,), code.loop(begin, end) as sequence:
        sums = target + sequence * rows * outputs
        with code.loop(0, rows) as step:
            with code.when(bias.is_not_null()):
                (sums + step * outputs).copy(bias, outputs)
            with code.when(~bias.is_not_null()):
                (sums + step * outputs).clear(outputs)
        with code.loop(0, sizes.steps) as step:
            spikes = bits + (step * sizes.sequences + sequence) * words
            for source, later_source in _each_spike(code, row, index, spikes, 0, words):
                later_row = row_starts[later_source]
                for k in (0, VECTOR):
                    (offsets + later_row + k).prefetch(to_write=False)
                    (weight + later_row + k).prefetch(to_write=False)
                _add_row(code, row_starts + source, offsets, weight, sums + step * outputs)


LIST = Shorts, LISTED * WORD + SLACK
"""Class and length of the buffer for a list of spikes."""


def _each_spike(
    code: Code, row: Row, index: Pointer, spikes: Longs, first_word: Value | int, last_word: Value
) -> Iterator[tuple[Value, Value]]:
    """Iterates over the set bits in words `first_word` to `last_word` of `spikes`, listed in `index`.

    Yields the position of a bit, and the position of the bit AHEAD places later, or of the last.
    """
    with code.loop(first_word, last_word, LISTED) as top:
        n = code.variable(0)
        with code.loop(top, (top + LISTED).smaller(last_word)) as word:
            n.value = append_bits(code, row, spikes[word], (word - top) * WORD, index, n.value)
        count, base = n.value, top * WORD
        with code.loop(0, count) as k:
            later = (k + AHEAD).smaller(count - 1)
            yield base + index[k].to(LONG), base + index[later].to(LONG)


def _add_row(code: Code, row_start: Longs, offsets: Ints, weight: Floats, sums: Pointer) -> None:
    """Adds the weights of one row of synapses to `sums`, each at its offset, one after another."""
    first, last = row_start[0], row_start[1]
    unrolled_last = last - (last - first) % UNROLLED
    with code.loop(first, unrolled_last, UNROLLED) as synapse:
        places, weights = (offsets + synapse).load(UNROLLED), (weight + synapse).load(UNROLLED)
        for k in range(UNROLLED):
            at = sums + places.lane(k).to(LONG)
            at.store(at.load() + weights.lane(k))
    with code.loop(unrolled_last, last) as synapse:
        at = sums + offsets[synapse].to(LONG)
        at.store(at.load() + weight[synapse])


def _row_vectors(code: Code, row_start: Longs) -> Iterator[tuple[Value, Value | None]]:
    """Iterates over the synapses of a row by vectors: the first synapse of each, and the mask of the last."""
    first, last = row_start[0], row_start[1]
    for k, mask in code.vectors(last - first, VECTOR):
        yield first + k, mask


@kernel
def weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    row_starts: Longs,
    offsets: Ints,
    gradient: Floats,
    target: Floats,
    sizes: Sizes,
    parts: Value,
    row: Row,
) -> None:
    """Writes the gradient of each weight: the sum of output gradients over the spikes of its source.

    A work item is one of `parts` ranges of source neurons. A sum belongs to one item, which adds in the order
    of `bits`, so that the sum does not depend on `parts`. `gradient` is ``[sequences, steps + reach,
    outputs]``.
    """
    words, sequences, outputs = words_of(sizes.inputs), sizes.sequences, sizes.outputs
    with code.scratch(LIST) as (index,), code.loop(begin, end) as part:
        first_word, last_word = words * part // parts, words * (part + 1) // parts
        first = row_starts[(first_word * WORD).smaller(sizes.inputs)]
        last = row_starts[(last_word * WORD).smaller(sizes.inputs)]
        (target + first).clear(last - first)
        with code.loop(0, sequences) as sequence, code.loop(0, sizes.steps) as step:
            spikes = bits + (step * sequences + sequence) * words
            at = gradient + (sequence * (sizes.steps + sizes.reach) + step) * outputs
            with code.loop(outputs, 2 * outputs, VECTOR) as k:
                (at + k).prefetch(to_write=False)  # the next step's gradient
            for source, _ in _each_spike(code, row, index, spikes, first_word, last_word):
                for synapse, mask in _row_vectors(code, row_starts + source):
                    values = at.gather((offsets + synapse).load(VECTOR, mask), mask)
                    sums = target + synapse
                    sums.store(sums.load(VECTOR, mask) + values, mask)


@kernel
def input_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    row_starts: Longs,
    offsets: Ints,
    weight: Floats,
    gradient: Floats,
    target: Floats,
    sizes: Sizes,
    row: Row,
) -> None:
    """Writes the input gradient ``[steps, sequences, inputs]`` where `bits` are set, zero elsewhere.

    A work item is one row of the result. `gradient` is ``[sequences, steps + reach, outputs]``, with the
    longest delay `reach`. Synapse k reads the number at ``offsets[k] = delay * outputs + output`` after the
    row of its step; the synapses of an input begin at ``row_starts[input]``.
    """
    words = words_of(sizes.inputs)
    with code.scratch(LIST) as (index,), code.loop(begin, end) as item:
        step, sequence = item // sizes.sequences, item % sizes.sequences
        at = gradient + (sequence * (sizes.steps + sizes.reach) + step) * sizes.outputs
        out = target + item * sizes.inputs
        out.clear(sizes.inputs)
        for source, _ in _each_spike(code, row, index, bits + item * words, 0, words):
            total = code.variable(0.0, FLOAT.of(VECTOR))
            for synapse, mask in _row_vectors(code, row_starts + source):
                values = at.gather((offsets + synapse).load(VECTOR, mask), mask)
                total.value = values.fused((weight + synapse).load(VECTOR, mask), total.value)
            out[source] = total.value.sum()


@kernel
def multiply_numbers(
    code: Code,
    begin: Value,
    end: Value,
    *,
    row_starts: Longs,
    places: Ints,
    weight: Floats,
    source: Floats,
    target: Floats,
    rows: Value,
    inputs: Value,
    outputs: Value,
) -> None:
    """Writes ``target[r, o] = sum over synapses k of output o of weight[k] source[r, places[k]]``.

    `source` is ``[rows, inputs]``, and `target` ``[rows, outputs]``; the synapses of output o begin at
    ``row_starts[o]``. A work item is a block of LANES rows, which is transposed, so that a synapse multiplies
    vectors of the numbers of its rows.
    """
    with (
        code.scratch((Floats, inputs * LANES), (Floats, WORD * LANES)) as (input_block, output_block),
        code.loop(begin, end) as item,
    ):
        first, lanes = item * LANES, code.constant(LANES)
        count = (rows - first).smaller(LANES)
        input_block.clear(inputs * LANES)
        transpose(code, input_block, lanes, source + first * inputs, inputs, count, inputs)
        with code.loop(0, outputs, WORD) as word:
            width = (outputs - word).smaller(WORD)
            with code.loop(0, width) as k:
                totals = [code.variable(0.0, FLOAT.of(VECTOR)) for _ in range(LANES // VECTOR)]
                with code.loop(row_starts[word + k], row_starts[word + k + 1]) as synapse:
                    numbers = input_block + places[synapse].to(LONG) * LANES
                    spread_weight = weight[synapse].spread(VECTOR)
                    for v, total in enumerate(totals):
                        total.value = spread_weight.fused((numbers + VECTOR * v).load(VECTOR), total.value)
                for v, total in enumerate(totals):
                    (output_block + (k * LANES + VECTOR * v)).store(total.value)
            transpose(code, target + first * outputs + word, outputs, output_block, lanes, width, count)
