"""The kernel of the weight gradient from bits: the sum of the gradient rows where each input spiked."""

from collections.abc import Iterator
from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.simd.lists import SLACK, WORD, append_bits, transpose_bits, words_of
from hibana.spikes.simd.rows import Row, add_rows, transpose
from hibana.spikes.simd.subsets import TABLES, Sum, add_subsets

__all__ = ["weight_gradient"]

GRADIENTS = 256
"""Rows of the output gradient that are copied to one block at a time; a multiple of 64."""
LISTED = 8
"""Words of inputs whose spikes are listed at a time."""
LENGTH = GRADIENTS // WORD
"""Words of one input's bits over a block of GRADIENTS rows."""


@kernel
def weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    gradient: Floats,
    targets: Floats,
    total: Value,
    inputs: Value,
    outputs: Value,
    parts_across: Value,
    parts_down: Value,
    per_part: Value,
    row: Row,
    by_table: bool,
) -> None:
    """Writes parts of the weight gradient, each for a range of panels of outputs, words of inputs, and rows.

    A part copies one block of gradient rows after another to a buffer that stays in the cache. It adds to the
    sum of each input the rows where the input spiked: from a list of these rows, or (`by_table`) from tables
    of sums of four rows. `targets` has one result per range of rows.
    """
    words, panels = words_of(inputs), row.panels(outputs)
    most_wide = (panels + parts_across - 1) // parts_across
    most_deep = (words + parts_down - 1) // parts_down
    with (
        code.scratch(
            (Floats, TABLES),
            (Floats, most_wide * most_deep * (WORD * row.floats)),
            (Floats, most_wide * (GRADIENTS * row.floats)),
            (Longs, most_deep * (WORD * LENGTH)),
            (Longs, WORD),
            (Longs, LISTED * WORD + 1),
            (Shorts, LISTED * WORD * GRADIENTS + SLACK),
        ) as (tables, sums, block_rows, columns, square, first, index),
        code.loop(begin, end) as part,
    ):
        across, down = part // parts_down % parts_across, part % parts_down
        share = part // parts_down // parts_across
        panel_begin, panel_end = panels * across // parts_across, panels * (across + 1) // parts_across
        word_begin, word_end = words * down // parts_down, words * (down + 1) // parts_down
        panel_count, word_count = panel_end - panel_begin, word_end - word_begin
        sums.clear(panel_count * word_count * (WORD * row.floats))
        block_rows.clear(panel_count * (GRADIENTS * row.floats))
        row_end = (per_part * (share + 1)).smaller(total)
        with code.loop(per_part * share, row_end, GRADIENTS) as top:
            rows = (row_end - top).smaller(GRADIENTS)
            with code.loop(0, panel_count) as panel:
                block = block_rows + panel * (GRADIENTS * row.floats)
                row.read_panel(code, panel_begin + panel, gradient + outputs * top, outputs, rows, block)
            with code.loop(0, word_count) as d:
                source = bits + (words * top + word_begin + d)
                _transpose_columns(code, source, words, rows, columns + d * (WORD * LENGTH), square)
            data = _Block(code, row, rows, panel_count, word_count, block_rows, columns, sums)
            if by_table:
                _add_by_table(data, tables)
            else:
                _add_by_list(data, first, index)
        with code.loop(0, panel_count) as panel:
            output = (panel_begin + panel) * row.floats
            output_count = (outputs - output).smaller(row.floats)
            with code.loop(0, word_count) as d:
                at = sums + (panel * word_count + d) * (WORD * row.floats)
                input_ = (word_begin + d) * WORD
                to = targets + (outputs * inputs * share + output * inputs + input_)
                input_count = (inputs - input_).smaller(WORD)
                transpose(code, to, inputs, at, code.constant(row.floats), input_count, output_count)


class _Block(NamedTuple):
    """A block of gradient rows, the transposed bits of the inputs over these rows, and the sums."""

    code: Code
    row: Row
    rows: Value
    """Number of gradient rows, at most GRADIENTS."""
    panel_count: Value
    """Number of panels of outputs."""
    word_count: Value
    """Number of words of inputs."""
    gradients: Pointer
    """``[panels][GRADIENTS][panel]`` floats."""
    columns: Pointer
    """``[inputs][LENGTH]`` words: the bits of each input over the rows."""
    sums: Pointer
    """``[panels][inputs][panel]`` floats."""


def _add_by_table(block: _Block, tables: Pointer) -> None:
    """Adds to the sum of each input the gradient rows where the input spiked.

    For each four gradient rows, a table holds the sums of their 16 subsets; four bits of an input select one.
    """
    code, row = block.code, block.row
    with code.loop(0, block.panel_count) as panel:

        def sums(word: Value) -> Iterator[Sum]:
            """Yields for each input its bits in 64 rows, and the addresses to read and to write its sum."""
            with code.loop(0, block.word_count * WORD) as k:
                at = block.sums + (panel * block.word_count * WORD + k) * row.floats
                yield (block.columns + k * LENGTH)[word], at, at

        gradients = block.gradients + panel * (GRADIENTS * row.floats)
        add_subsets(code, row, tables, gradients, block.rows, sums)


def _add_by_list(block: _Block, first: Pointer, index: Pointer) -> None:
    """Adds to each input's sum the gradient rows where it spiked, from a list of these rows."""
    code, row = block.code, block.row
    with code.loop(0, block.word_count, LISTED) as word:
        inputs = (block.word_count - word).smaller(LISTED) * WORD
        n = code.variable(0)
        with code.loop(0, inputs) as k:
            first[k] = n.value
            with code.loop(0, words_of(block.rows)) as w:
                bits = block.columns[(word * WORD + k) * LENGTH + w]
                n.value = append_bits(code, row, bits, w * WORD, index, n.value)
        first[inputs] = n.value
        with code.loop(0, block.panel_count) as panel, code.loop(0, inputs) as k:
            gradients = block.gradients + panel * (GRADIENTS * row.floats)
            at = block.sums + ((panel * block.word_count + word) * WORD + k) * row.floats
            add_rows(code, row, at, at, gradients, index + first[k], first[k + 1] - first[k])


def _transpose_columns(
    code: Code, bits: Pointer, words: Value, rows: Value, out: Pointer, square: Pointer
) -> None:
    """Transposes the bits of 64 inputs over up to GRADIENTS rows to `out`, ``[64][LENGTH]`` words.

    `bits` are `words` apart from row to row; `square` has room for 64 words.
    """
    with code.loop(0, words_of(rows)) as part:
        count = (rows - part * WORD).smaller(WORD)
        with code.loop(0, count) as i:
            square[i] = bits[words * (part * WORD + i)]
        (square + count).clear(code.constant(WORD) - count)
        transpose_bits(code, square)
        with code.loop(0, WORD) as k:
            out[k * LENGTH + part] = square[k]
