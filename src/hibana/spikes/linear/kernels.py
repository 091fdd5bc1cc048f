"""Kernels of ``[rows, inputs]`` bits times ``[outputs, inputs]`` weights, and of the input gradient.

Weights are packed to panels, ``[outputs / panel][inputs][panel]``, so that what a spike adds is one row.
"""

from collections.abc import Iterator

from hibana.runtime.kernels import INT, Code, Floats, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.simd.lists import SLACK, WORD, listed, words_of
from hibana.spikes.simd.rows import VECTOR, Row, add_rows, begin_with, dots, transposed
from hibana.spikes.simd.subsets import TABLES, Sum, add_subsets

__all__ = ["LOOKED_UP", "forward_lists", "forward_tables", "input_gradient", "pack", "pack_planes"]

BLOCK = 256
"""Rows of bits that are processed at a time."""
LOOKED_UP = 512
"""Rows of bits that are looked up in the same tables."""


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
    row: Row,
) -> None:
    """Blocks of 64 inputs of ``[outputs, inputs]`` weights to ``[panels][words * 64][panel]``, then zeros."""
    words = words_of(inputs)
    with code.loop(begin, end) as item:
        out = target + row.floats * WORD * item
        _turned(code, row, out, source, item // words, item % words, outputs, inputs)


@kernel
def pack_planes(
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
    """:func:`pack` for each plane of bits, ``[panels][planes][words * 64][panel]``.

    Weights are multiplied by the `factor`, the bits of a float32, times 1, 2, 4, …; those of the `places` of
    a window, ``[outputs][channels][places]``, come in the order ``[places][channels]``.
    """
    words, channels = words_of(inputs), inputs // places
    unit = factor.to(INT).float_from_bits().spread(VECTOR)
    with code.scratch((Floats, WORD * row.floats)) as (block,), code.loop(begin, end) as item:
        panel, word = item // words, item % words
        deep = _turned(code, row, block, source, panel, word, outputs, inputs)
        channel, place = code.variable(word * WORD // places), code.variable(word * WORD % places)
        with code.loop(0, WORD) as k:
            to = (k < deep).select(place.value * channels + channel.value, word * WORD + k)
            out = target + (panel * planes * words * WORD + to) * row.floats
            for plane in range(planes):
                for v, value in enumerate(row.load(block + k * row.floats)):
                    (out + VECTOR * v).store(value * (unit * 2.0**plane))
                out = out + words * (WORD * row.floats)
            last = (place.value + 1).equals(places)
            channel.value += last.select(code.constant(1), 0)
            place.value = last.select(0, place.value + 1)


def _turned(
    code: Code,
    row: Row,
    target: Pointer,
    source: Pointer,
    panel: Value,
    word: Value,
    outputs: Value,
    inputs: Value,
) -> Value:
    """Writes the weights of 64 inputs of a panel, padded with zeros; returns the number of inputs."""
    wide = (outputs - panel * row.floats).smaller(row.floats)
    deep = (inputs - word * WORD).smaller(WORD)
    with code.when((wide < row.floats) | (deep < WORD)):
        target.clear(WORD * row.floats)
    at = source + (panel * row.floats * inputs + word * WORD)
    transposed(code, target, code.constant(row.floats), at, inputs, wide, deep)
    return deep


@kernel
def forward_lists(
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
) -> None:
    """Rows of outputs: for each spike of an input row, the spike's row of weights is added.

    The spikes of `per_tile` rows are listed at a time; then, block by block of `tile` words of inputs, the
    weights of the block are added to all of these rows.
    """
    words = words_of(inputs)
    tiles = (words + tile - 1) // tile
    with (
        code.scratch(
            (Floats, per_tile * row.floats),
            (Floats, row.floats),
            (Longs, tiles * per_tile + 1),
            (Shorts, words * per_tile * WORD + SLACK),
        ) as (block, begun, first, index),
        code.loop(begin, end, per_tile) as top,
    ):
        rows = (end - top).smaller(per_tile)
        n = code.variable(0)
        with code.loop(0, tiles) as t, code.loop(0, rows) as i:
            first[t * rows + i] = n.value
            at = bits + words * (top + i)
            with code.loop(t * tile, ((t + 1) * tile).smaller(words)) as w:
                n.value = listed(code, row, at[w], (w - t * tile) * WORD, index, n.value)
        first[tiles * rows] = n.value
        with code.loop(0, row.panels(outputs)) as panel:
            begin_with(code, row, begun, bias, panel, outputs)
            with (
                row.placed(code, panel, target + outputs * top, outputs, rows, block) as (out, pitch),
                code.loop(0, tiles) as t,
            ):
                tiled = table + (words * panel + tile * t) * (WORD * row.floats)
                with code.loop(0, rows) as i:
                    listed_from, listed_to = first[t * rows + i], first[t * rows + i + 1]
                    into_row = out + pitch * i
                    start = begun.replace_if(t > 0, into_row)
                    add_rows(code, row, into_row, start, tiled, index + listed_from, listed_to - listed_from)


@kernel
def forward_tables(
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
    row: Row,
) -> None:
    """Rows of outputs: for each four inputs, the sum of those that spiked is looked up."""
    words = words_of(inputs)
    room = code.constant(LOOKED_UP * row.floats)
    with (
        code.scratch(
            (Floats, TABLES), (Floats, (outputs % row.floats).equals(0).select(0, room)), (Floats, row.floats)
        ) as (tables, block, begun),
        code.loop(begin, end, LOOKED_UP) as top,
        code.loop(0, row.panels(outputs)) as panel,
    ):
        rows = (end - top).smaller(LOOKED_UP)
        begin_with(code, row, begun, bias, panel, outputs)
        with row.placed(code, panel, target + outputs * top, outputs, rows, block) as (out, pitch):

            def sums(word: Value) -> Iterator[Sum]:
                with code.loop(0, rows) as i:
                    into_row = out + pitch * i
                    yield (bits + words * (top + i))[word], begun.replace_if(word > 0, into_row), into_row

            add_subsets(code, row, tables, table + words * panel * (WORD * row.floats), inputs, sums)


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
    """Rows of the input gradient: dot products where `bits` are set, zero elsewhere.

    One block of `tile` words of inputs is computed at a time, so that its weights stay in the cache.
    """
    words = words_of(inputs)
    panels = row.panels(outputs)
    with code.scratch((Floats, panels * row.floats), (Longs, panels), (Shorts, tile * WORD + SLACK)) as parts:
        padded, places, index = parts
        padded.clear(panels * row.floats)
        with (
            code.loop(begin, end, BLOCK) as top,
            code.loop(0, words, tile) as word,
            code.loop(top, (top + BLOCK).smaller(end)) as i,
        ):
            last = (word + tile).smaller(words)
            n = code.variable(0)
            with code.loop(word, last) as w:
                n.value = listed(code, row, bits[words * i + w], (w - word) * WORD, index, n.value)
            out = target + (inputs * i + word * WORD)
            out.clear((last * WORD).smaller(inputs) - word * WORD)
            at, narrow = gradient + outputs * i, outputs < panels * row.floats
            with code.when(narrow):
                padded.copy(at, outputs)
            at = at.replace_if(narrow, padded)
            with code.loop(0, panels) as panel:
                places[panel] = (at + row.floats * panel).address()
            tiled = table + word * (WORD * row.floats)
            dots(code, row, out, places, tiled, panels, words * (WORD * row.floats), index, n.value)
