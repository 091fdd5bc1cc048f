"""Kernels of ``[rows, inputs]`` bits times ``[outputs, inputs]`` weights, and of the input gradient.

Weights are packed into panels, ``[outputs / panel][inputs][panel]``, so that a spike adds one contiguous row
of each panel.
"""

from collections.abc import Iterator

from hibana.runtime.kernels import INT, Code, Floats, Longs, Shorts, Value, kernel
from hibana.spikes.simd.lists import SLACK, WORD, append_bits, words_of
from hibana.spikes.simd.rows import VECTOR, Row, add_rows, dots, in_eights, load_bias, pad_list, transpose
from hibana.spikes.simd.subsets import TABLES, Sum, add_subsets

__all__ = ["forward", "input_gradient", "pack"]

BLOCK = 256
"""Rows of bits for which the input gradient reads the same block of weights."""


@kernel
def pack(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    target: Floats,
    outputs: Value,
    inputs: Value,
    places: Value,
    factor: Value,
    row: Row,
    planes: int,
) -> None:
    """Packs weights for each bit plane to ``[panels][planes][words * 64][panel]``, padded with zeros.

    The weights of plane k are multiplied by `factor` (the bits of a float32) times 2^k. The inputs of a
    window of `places` pixels, ``[channels][places]``, are reordered to ``[places][channels]``. One work item
    is 64 inputs of a panel.
    """
    words, channels = words_of(inputs), inputs // places
    scale = factor.to(INT).float_from_bits().spread(VECTOR)
    with code.scratch((Floats, WORD * row.floats)) as (block,), code.loop(begin, end) as item:
        panel, word = item // words, item % words
        output_count = (outputs - panel * row.floats).smaller(row.floats)
        count = (inputs - word * WORD).smaller(WORD)
        with code.when((output_count < row.floats) | (count < WORD)):
            block.clear(WORD * row.floats)
        at = source + (panel * row.floats * inputs + word * WORD)
        transpose(code, block, code.constant(row.floats), at, inputs, output_count, count)
        channel, place = code.variable(word * WORD // places), code.variable(word * WORD % places)
        with code.loop(0, WORD) as k:
            to = (k < count).select(place.value * channels + channel.value, word * WORD + k)
            out = target + (panel * planes * words * WORD + to) * row.floats
            for plane in range(planes):
                for v, value in enumerate(row.load(block + k * row.floats)):
                    (out + VECTOR * v).store(value * (scale * 2.0**plane))
                out = out + words * (WORD * row.floats)
            is_last = (place.value + 1).equals(places)
            channel.value += is_last.select(code.constant(1), 0)
            place.value = is_last.select(0, place.value + 1)


@kernel
def forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    table: Floats,
    bias: Floats,
    target: Floats,
    inputs: Value,
    outputs: Value,
    tile: Value,
    per_tile: Value,
    row: Row,
    by_table: bool,
) -> None:
    """Writes rows of outputs: the bias plus the weight rows of the inputs that spiked.

    The weights of one block of `tile` words of inputs after another are added to `per_tile` rows, whose
    spikes are listed first. With `by_table`, the sums of the weight rows of each four inputs are looked up in
    tables instead, and a block is one word. `bias` may be null.
    """
    words = words_of(inputs)
    tiles = (words + tile - 1) // tile
    with (
        code.scratch(
            (Floats, per_tile * row.floats),
            (Floats, row.floats),
            (Floats, TABLES if by_table else 0),
            (Longs, tiles * per_tile + 1),
            (Shorts, 0 if by_table else words * per_tile * WORD + SLACK),
        ) as (block, initial, tables, first, index),
        code.loop(begin, end, per_tile) as top,
    ):
        rows = (end - top).smaller(per_tile)
        if not by_table:
            n = code.variable(0)
            with code.loop(0, tiles) as t, code.loop(0, rows) as i:
                first[t * rows + i] = n.value
                at = bits + words * (top + i)
                with code.loop(t * tile, ((t + 1) * tile).smaller(words)) as w:
                    n.value = append_bits(code, row, at[w], (w - t * tile) * WORD, index, n.value)
            first[tiles * rows] = n.value
        with code.loop(0, row.panels(outputs)) as panel:
            load_bias(code, row, initial, bias, panel, outputs)
            weights = table + words * panel * (WORD * row.floats)
            with row.writable_panel(code, panel, target + outputs * top, outputs, rows, block) as (
                out,
                pitch,
            ):
                if by_table:

                    def sums(word: Value) -> Iterator[Sum]:
                        """Iterates over rows: the bits of a word, the row to start from, the row to write."""
                        with code.loop(0, rows) as i:
                            to = out + pitch * i
                            yield (bits + words * (top + i))[word], initial.replace_if(word > 0, to), to

                    add_subsets(code, row, tables, weights, inputs, sums)
                else:
                    with code.loop(0, tiles) as t, code.loop(0, rows) as i:
                        to, number = out + pitch * i, t * rows + i
                        start, block_weights = (
                            initial.replace_if(t > 0, to),
                            weights + tile * t * (WORD * row.floats),
                        )
                        length = first[number + 1] - first[number]
                        add_rows(code, row, to, start, block_weights, index + first[number], length)


@kernel
def input_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    table: Floats,
    gradient: Floats,
    target: Floats,
    inputs: Value,
    outputs: Value,
    tile: Value,
    row: Row,
) -> None:
    """Writes rows of the input gradient: ``gradient @ weight`` where `bits` are set, zero elsewhere.

    One block of `tile` words of inputs is computed at a time, so that its weights stay in the cache.
    """
    words = words_of(inputs)
    panels = row.panels(outputs)

    def panel_offsets() -> Iterator[tuple[Value, Value]]:
        """The offset of each panel in a row of the gradient, and in the table."""
        with code.loop(0, panels) as panel:
            yield panel * row.floats, panel * words * (WORD * row.floats)

    buffers = (Floats, panels * row.floats), (Shorts, tile * WORD + SLACK)
    with code.scratch(*buffers) as (padded, index):
        padded.clear(panels * row.floats)
        with (
            code.loop(begin, end, BLOCK) as top,
            code.loop(0, words, tile) as word,
            code.loop(top, (top + BLOCK).smaller(end)) as i,
        ):
            last = (word + tile).smaller(words)
            n = code.variable(0)
            with code.loop(word, last) as w:
                n.value = append_bits(code, row, bits[words * i + w], (w - word) * WORD, index, n.value)
            pad_list(code, index, code.constant(0), n)
            out = target + (inputs * i + word * WORD)
            out.clear((last * WORD).smaller(inputs) - word * WORD)
            at, is_partial = gradient + outputs * i, outputs < panels * row.floats
            with code.when(is_partial):
                padded.copy(at, outputs)
            at = at.replace_if(is_partial, padded)
            for numbers in in_eights(code, index, code.constant(0), n.value):
                weights = [table + (word * WORD + k) * row.floats for k in numbers]
                for k, total in zip(numbers, dots(code, row, at, weights, panel_offsets()), strict=True):
                    out[k] = total
