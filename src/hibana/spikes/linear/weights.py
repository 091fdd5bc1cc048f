"""The weight gradient from bits: for each input the sum of the gradient's rows in which it spiked."""

from collections.abc import Iterator
from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.simd.lists import SLACK, WORD, listed, transposed_bits, words_of
from hibana.spikes.simd.rows import VECTOR, Row, add_rows, transposed
from hibana.spikes.simd.subsets import TABLES, Sum, add_subsets

__all__ = ["weight_gradient"]

GRADIENTS = 256
"""Rows of the output gradient that are copied to one block at a time; a multiple of 64."""
LISTED = 8
"""Words of inputs whose spikes are listed at a time."""
LENGTH = GRADIENTS // WORD
"""Words of an input's bits over as many rows."""


@kernel
def weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    gradient: Floats,
    targets: Floats,
    biases: Floats,
    total: Value,
    inputs: Value,
    outputs: Value,
    parts_across: Value,
    parts_down: Value,
    per_part: Value,
    row: Row,
    by_table: bool,
) -> None:
    """Parts of the weights' gradient, each some panels of outputs by some words of inputs, over some rows.

    For each block of rows, copied to where they stay in the cache: an input's sum takes the gradient rows
    where it spiked, from a list, or (`by_table`) from tables of sums of four rows. Each part of the rows has
    sums of its own.
    """
    words, panels = words_of(inputs), row.panels(outputs)
    most_wide = (panels + parts_across - 1) // parts_across
    most_deep = (words + parts_down - 1) // parts_down
    with (
        code.scratch(
            (Floats, TABLES),
            (Floats, most_wide * most_deep * (WORD * row.floats)),
            (Floats, most_wide * (GRADIENTS * row.floats)),
            (Floats, most_wide * row.floats),
            (Longs, most_deep * (WORD * LENGTH)),
            (Longs, WORD),
            (Longs, LISTED * WORD + 1),
            (Shorts, LISTED * WORD * GRADIENTS + SLACK),
        ) as (tables, sums, near, bias_sums, turned, square, first, index),
        code.loop(begin, end) as part,
    ):
        across, down = part // parts_down % parts_across, part % parts_down
        share = part // parts_down // parts_across
        panel_begin, panel_end = panels * across // parts_across, panels * (across + 1) // parts_across
        word_begin, word_end = words * down // parts_down, words * (down + 1) // parts_down
        wide, deep = panel_end - panel_begin, word_end - word_begin
        sums.clear(wide * deep * (WORD * row.floats))
        near.clear(wide * (GRADIENTS * row.floats))
        bias_sums.clear(wide * row.floats)
        row_end = (per_part * (share + 1)).smaller(total)
        with code.loop(per_part * share, row_end, GRADIENTS) as top:
            rows = (row_end - top).smaller(GRADIENTS)
            with code.loop(0, wide) as panel:
                _brought_near(
                    code,
                    row,
                    gradient + (outputs * top + (panel_begin + panel) * row.floats),
                    outputs,
                    rows,
                    (outputs - (panel_begin + panel) * row.floats).smaller(row.floats),
                    near + panel * (GRADIENTS * row.floats),
                    bias_sums + panel * row.floats,
                )
            with code.loop(0, deep) as d:
                columns = bits + (words * top + word_begin + d)
                _columns(code, columns, words, rows, turned + d * (WORD * LENGTH), square)
            block = _Block(code, row, rows, wide, deep, near, turned, sums)
            if by_table:
                _look_up(block, tables)
            else:
                _add_listed(block, first, index)
        with code.loop(0, wide) as panel:
            output = (panel_begin + panel) * row.floats
            there = (outputs - output).smaller(row.floats)
            with code.loop(0, deep) as d:
                done = sums + (panel * deep + d) * (WORD * row.floats)
                input_ = (word_begin + d) * WORD
                into = targets + (outputs * inputs * share + output * inputs + input_)
                inside = (inputs - input_).smaller(WORD)
                transposed(code, into, inputs, done, code.constant(row.floats), inside, there)
            with code.when(biases.is_not_null() & down.equals(0)):
                (biases + (outputs * share + output)).copy(bias_sums + panel * row.floats, there)


class _Block(NamedTuple):
    """A copied block of gradient rows, the transposed bits of the inputs over them, and the sums."""

    code: Code
    row: Row
    rows: Value
    wide: Value
    deep: Value
    near: Pointer
    turned: Pointer
    sums: Pointer


def _look_up(block: _Block, tables: Pointer) -> None:
    """Adds to each input's sum the rows where it spiked, by tables of the sums of four rows."""
    code, row = block.code, block.row
    with code.loop(0, block.wide) as panel:

        def sums(word: Value) -> Iterator[Sum]:
            with code.loop(0, block.deep * WORD) as k:
                at = block.sums + (panel * block.deep * WORD + k) * row.floats
                yield (block.turned + k * LENGTH)[word], at, at

        rows_at = block.near + panel * (GRADIENTS * row.floats)
        add_subsets(code, row, tables, rows_at, block.rows, sums)


def _add_listed(block: _Block, first: Pointer, index: Pointer) -> None:
    """Adds to each input's sum the rows where it spiked, from a list."""
    code, row = block.code, block.row
    with code.loop(0, block.deep, LISTED) as word:
        inputs = (block.deep - word).smaller(LISTED) * WORD
        n = code.variable(0)
        with code.loop(0, inputs) as k:
            first[k] = n.value
            with code.loop(0, words_of(block.rows)) as w:
                bits = block.turned[(word * WORD + k) * LENGTH + w]
                n.value = listed(code, row, bits, w * WORD, index, n.value)
        first[inputs] = n.value
        with code.loop(0, block.wide) as panel, code.loop(0, inputs) as k:
            rows_at = block.near + panel * (GRADIENTS * row.floats)
            at = block.sums + ((panel * block.deep + word) * WORD + k) * row.floats
            add_rows(code, row, at, at, rows_at, index + first[k], first[k + 1] - first[k])


def _brought_near(
    code: Code,
    row: Row,
    gradient: Pointer,
    outputs: Value,
    rows: Value,
    wide: Value,
    near: Pointer,
    total: Pointer,
) -> None:
    """Copies `rows` of a panel of the gradient to `near`, and adds them to the bias sums at `total`."""
    for masks in row.whole_or_part(code, wide):
        sums = [code.variable(value) for value in row.load(total)]
        with code.loop(0, rows) as i:
            for v, (there, summed) in enumerate(zip(masks, sums, strict=True)):
                value = (gradient + (outputs * i + VECTOR * v)).load(VECTOR, there)
                (near + (i * row.floats + VECTOR * v)).store(value)
                summed.value += value
        row.store([summed.value for summed in sums], total)


def _columns(code: Code, bits: Pointer, words: Value, rows: Value, out: Pointer, square: Pointer) -> None:
    """Transposes the bits of 64 inputs over up to GRADIENTS rows to ``[64][LENGTH]`` words."""
    with code.loop(0, words_of(rows)) as part:
        there = (rows - part * WORD).smaller(WORD)
        with code.loop(0, there) as i:
            square[i] = bits[words * (part * WORD + i)]
        (square + there).clear(code.constant(WORD) - there)
        transposed_bits(code, square)
        with code.loop(0, WORD) as k:
            out[k * LENGTH + part] = square[k]
