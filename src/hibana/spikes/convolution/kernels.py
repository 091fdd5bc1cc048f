"""Kernels that gather the bits under each window (im2col of bits), and the masked input gradient.

Images lie channels last, ``[images, height, width, channels]``, a row of pixels as one row of bits.
"""

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Group, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.simd.lists import (
    SLACK,
    WORD,
    bits_from,
    first_bits,
    listed,
    put_bits,
    transposed_bits,
    words_of,
)
from hibana.spikes.simd.rows import VECTOR, Row, horizontal_sums

__all__ = ["Sizes", "brought_near", "input_gradient", "windows"]


TILE = 128
"""Pixels of a tile of the input gradient; a multiple of 64."""


class Sizes(Group):
    """Of the images, of the convolution, and of what comes out."""

    channels: Value
    height: Value
    width: Value
    kernel_height: Value
    kernel_width: Value
    stride_down: Value
    stride_across: Value
    padding_down: Value
    padding_across: Value
    dilation_down: Value
    dilation_across: Value
    out_height: Value
    out_width: Value


@kernel
def windows(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    target: Longs,
    sizes: Sizes,
) -> None:
    """Im2col of bits: for each output pixel, the bits under its window, ``[kernel height][kernel
    width][channels]``.

    One work item is a row of output pixels.
    """
    channels, out_width = sizes.channels, sizes.out_width
    step = sizes.stride_across * channels
    words = words_of(sizes.width * channels)
    pitch = words_of((sizes.width + sizes.padding_across * 2) * channels) + 2
    wide = sizes.kernel_width * channels
    window = words_of(sizes.kernel_height * wide)
    joined = sizes.dilation_across.equals(1)
    in_a_word = window.equals(1) & joined
    with (
        code.scratch((Longs, sizes.kernel_height * pitch), (Longs, words + 1)) as (rows, row),
        code.loop(begin, end) as item,
    ):
        image, y = item // sizes.out_height, item % sizes.out_height
        rows.clear(sizes.kernel_height * pitch)
        row[words] = 0
        with code.loop(0, sizes.kernel_height) as i:
            above = y * sizes.stride_down - sizes.padding_down + i * sizes.dilation_down
            with code.when((above >= 0) & (above < sizes.height)):
                row.copy(bits + words * (image * sizes.height + above), words)
                put_bits(code, rows + pitch * i, sizes.padding_across * channels, row, sizes.width * channels)
        out = target + window * item * out_width
        with code.when(in_a_word), code.loop(0, out_width) as x:
            under = code.variable(0)
            with code.loop(0, sizes.kernel_height) as i:
                here = bits_from(rows + pitch * i, x * step) & first_bits(code, wide)
                under.value |= here << i * wide
            out[x] = under.value
        with code.when(~in_a_word):
            pieces, piece = joined.select(1, sizes.kernel_width), joined.select(wide, channels)
            rest = piece % WORD
            whole = piece - rest
            n = code.variable(0)
            with code.loop(0, out_width) as x:
                begun, filled = code.variable(0), code.variable(0)
                with code.loop(0, sizes.kernel_height) as i, code.loop(0, pieces) as j:
                    line = rows + pitch * i
                    source = x * step + j * sizes.dilation_across * channels
                    before = filled.value
                    with code.loop(0, whole, WORD) as done:
                        here = bits_from(line + done // WORD, source)
                        out[n.value] = begun.value | (here << before)
                        n.value += 1
                        begun.value = (here >> 1) >> (WORD - 1 - before)
                    with code.when(rest > 0):
                        here = bits_from(line + whole // WORD, source) & first_bits(code, rest)
                        begun.value |= here << before
                        filled.value += rest
                        with code.when(filled.value >= WORD):
                            out[n.value] = begun.value
                            n.value += 1
                            begun.value = (here >> 1) >> (WORD - 1 - before)
                            filled.value -= WORD
                with code.when(filled.value > 0):
                    out[n.value] = begun.value
                    n.value += 1


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
    sizes: Sizes,
    images: Value,
    outputs: Value,
    per_tile: Value,
    deep: Value,
    wide: Value,
    row: Row,
    unrolled: int,
) -> None:
    """The input gradient at stride 1: computed where `bits` are set, zero elsewhere.

    One work item is a tile of `deep` x `wide` pixels of the input, of `per_tile` whole images where a tile
    covers an image; TILE pixels at most. For each channel the pixels whose bit is set are listed. Panel by
    panel, the output gradient around the tile is copied to a block, padded with zeros, and each channel's
    weights are multiplied with eight listed pixels at a time. The table holds, for each panel of outputs,
    ``[channels][kernel height][kernel width][panel]``. With a vertical dilation, `deep` is 1. `unrolled`
    places of a row of the window are computed at a time: all, or 1.
    """
    channels, width = sizes.channels, sizes.width
    words, blocks = words_of(width * channels), words_of(channels)
    panels = row.panels(outputs)
    taps = sizes.kernel_height * sizes.kernel_width
    panel_floats = words_of(channels * taps) * (WORD * row.floats)
    reach_down, reach_across = sizes.kernel_height - 1, (sizes.kernel_width - 1) * sizes.dilation_across
    pitch = (wide + reach_across) * row.floats
    tall = deep + reach_down
    tiles_down, tiles_across = (sizes.height + deep - 1) // deep, (width + wide - 1) // wide
    line_floats = width * channels
    image_floats = sizes.height * line_floats
    with code.scratch(
        (Floats, per_tile * tall * pitch),
        (Longs, blocks * TILE),
        (Longs, words + 1),
        (Longs, TILE),
        (Longs, TILE),
        (Longs, channels + 1),
        (Shorts, channels * TILE + SLACK),
    ) as (near, wanted, pixels, places, into, begins, index):
        pixels[words] = 0
        with code.loop(0, per_tile) as k, code.loop(0, deep) as down, code.loop(0, wide) as across:
            pixel = (k * deep + down) * wide + across
            places[pixel] = (k * tall + down) * pitch + across * row.floats
            into[pixel] = k * image_floats + down * line_floats + across * channels
        with code.loop(begin, end) as item:
            image, tile = item // (tiles_down * tiles_across) * per_tile, item % (tiles_down * tiles_across)
            count = (images - image).smaller(per_tile)
            top, left = tile // tiles_across * deep, tile % tiles_across * wide
            height, across = (sizes.height - top).smaller(deep), (width - left).smaller(wide)
            out = target + (image * image_floats + top * line_floats + left * channels)
            wanted.clear(blocks * TILE)
            with code.loop(0, count) as k, code.loop(0, height) as y:
                (out + (k * image_floats + y * line_floats)).clear(across * channels)
                line = (image + k) * sizes.height + top + y
                pixels.copy(bits + words * line, words)
                with code.loop(0, blocks) as block, code.loop(0, across) as x:
                    here = bits_from(pixels, (left + x) * channels + block * WORD)
                    here &= first_bits(code, (channels - block * WORD).smaller(WORD))
                    wanted[block * TILE + (k * deep + y) * wide + x] = here
            with code.loop(0, blocks * (TILE // WORD)) as square:
                transposed_bits(code, wanted + square * WORD)
            n = code.variable(0)
            with code.loop(0, channels) as channel:
                begins[channel], first = n.value, n.value
                of_channel = wanted + (channel // WORD * TILE + channel % WORD)
                for part in range(0, TILE, WORD):
                    n.value = listed(code, row, of_channel[part], code.constant(part), index, n.value)
                with code.when(n.value > first):  # pad to a multiple of four with the last
                    (index + n.value).store(index[n.value - 1].spread(4))
                    n.value = (n.value + 3) & -4
            begins[channels] = n.value
            with code.loop(0, panels) as panel:
                upper = top + sizes.padding_down - reach_down * sizes.dilation_down
                with code.loop(0, count) as k, code.loop(0, height + reach_down) as y:
                    down = upper + y * sizes.dilation_down
                    inside = (down >= 0) & (down < sizes.out_height)
                    line = (image + k) * sizes.out_height + down
                    begun = left + sizes.padding_across - reach_across
                    to, seen = near + (k * tall + y) * pitch, across + reach_across
                    with code.when(~inside):
                        to.clear(seen * row.floats)
                    with code.when(inside):
                        at = gradient + line * sizes.out_width * outputs + panel * row.floats
                        brought_near(code, row, to, at, begun, seen, panel, sizes, outputs)
                tables = table + panel * panel_floats
                with code.loop(0, channels) as channel:
                    first, stop = begins[channel], begins[channel + 1]
                    given = out + channel, into, near, places, tables + channel * taps * row.floats
                    eights = stop - ((stop - first) & 4)
                    with code.loop(first, eights, 8) as i:
                        _of_some(code, row, 8, *given, index + i, pitch, sizes, unrolled)
                    with code.when(eights < stop):
                        _of_some(code, row, 4, *given, index + eights, pitch, sizes, unrolled)


def brought_near(
    code: Code,
    row: Row,
    target: Pointer,
    line: Pointer,
    begin: Value,
    count: Value,
    panel: Value,
    sizes: Sizes,
    outputs: Value,
) -> None:
    """Copies a panel of `count` pixels of a gradient's `line`, from pixel `begin` on, padded with zeros."""
    first = (0 - begin).larger(0).smaller(count)
    stop = (sizes.out_width - begin).smaller(count).larger(first)
    target.clear(first * row.floats)
    (target + stop * row.floats).clear((count - stop) * row.floats)
    wide = (outputs - panel * row.floats).smaller(row.floats)
    for there in row.whole_or_part(code, wide):
        with code.loop(first, stop) as x:
            at, to = line + (begin + x) * outputs, target + x * row.floats
            for v, vector_width in enumerate(there):
                (to + VECTOR * v).store((at + VECTOR * v).load(VECTOR, vector_width))


def _of_some(
    code: Code,
    row: Row,
    entries: int,
    out: Pointer,
    into: Pointer,
    near: Pointer,
    places: Pointer,
    weights: Pointer,
    index: Pointer,
    pitch: Value,
    sizes: Sizes,
    unrolled: int,
) -> None:
    """Adds a panel's part of the input gradient of one channel, at the first `entries` pixels of `index`."""
    which = [index[e].to(LONG) for e in range(entries)]
    pixels = [near + places[k] for k in which]
    sums = [code.variable(0.0, FLOAT.of(VECTOR)) for _ in which]

    def multiplied(factors: Pointer, unrolled: list[Pointer]) -> None:
        for v, factor in enumerate(row.load(factors)):
            for total, at in zip(sums, unrolled, strict=True):
                total.value = factor.fused((at + VECTOR * v).load(VECTOR), total.value)

    with code.loop(0, sizes.kernel_height) as i:
        factors = weights + i * sizes.kernel_width * row.floats
        lines = [at + (sizes.kernel_height - 1 - i) * pitch for at in pixels]
        if unrolled > 1:
            for j in range(unrolled):
                multiplied(factors + j * row.floats, [at + (unrolled - 1 - j) * row.floats for at in lines])
        else:
            with code.loop(0, sizes.kernel_width) as place:
                across = (sizes.kernel_width - 1 - place) * sizes.dilation_across * row.floats
                multiplied(factors + place * row.floats, [at + across for at in lines])
    totals = horizontal_sums([total.value for total in sums])
    targets = [out + into[k] for k in which]
    found = [at.load() + totals.lane(e * VECTOR // entries) for e, at in enumerate(targets)]
    for at, value in zip(targets, found, strict=True):
        at.store(value)
