"""A convolution of spikes as a linear layer's product: the bits under its window, and its input's gradient.

Images lie channels last, ``[images, height, width, channels]``, a row of pixels as one row of bits.
"""

from hibana.events.lanes.lists import SLACK, WORD, bits_from, first_bits, listed, put_bits
from hibana.events.lanes.rows import Row, dots
from hibana.native import Code, Floats, Group, Longs, Pointer, Shorts, Value, kernel

__all__ = ["Sizes", "input_gradient", "windows"]


class Sizes(Group):
    """Of the images, of the convolution, and of what comes out."""

    channels: Value
    height: Value
    width: Value
    kernel_height: Value
    kernel_width: Value
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
    stride_down: Value,
    stride_across: Value,
) -> None:
    """For each output pixel the bits under its window, ``[kernel height][kernel width][channels]``.

    One piece of work is a row of output pixels.
    """
    channels, out_width = sizes.channels, sizes.out_width
    words = (sizes.width * channels + (WORD - 1)) // WORD
    pitch = ((sizes.width + sizes.padding_across * 2) * channels + (WORD - 1)) // WORD + 2
    wide = sizes.kernel_width * channels
    window = (sizes.kernel_height * wide + (WORD - 1)) // WORD
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
            above = y * stride_down - sizes.padding_down + i * sizes.dilation_down
            with code.when((above >= 0) & (above < sizes.height)):
                row.copy(bits + words * (image * sizes.height + above), words)
                put_bits(code, rows + pitch * i, sizes.padding_across * channels, row, sizes.width * channels)
        out = target + window * item * out_width
        with code.when(in_a_word), code.loop(0, out_width) as x:
            under = code.variable(0)
            with code.loop(0, sizes.kernel_height) as i:
                here = bits_from(rows + pitch * i, x * stride_across * channels) & first_bits(code, wide)
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
                    source = (x * stride_across + j * sizes.dilation_across) * channels
                    with code.loop(0, whole, WORD) as done:
                        here = bits_from(line, source + done)
                        out[n.value] = begun.value | (here << filled.value)
                        n.value += 1
                        begun.value = (here >> 1) >> (WORD - 1 - filled.value)
                    with code.when(rest > 0):
                        here = bits_from(line, source + whole) & first_bits(code, rest)
                        before = filled.value
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
    outputs: Value,
    row: Row,
) -> None:
    """The input's gradient at stride 1, computed where the support's bits are set and zero elsewhere.

    One piece of work is a row of input pixels; the table holds, for each channel of the input, its weights
    ``[kernel height][kernel width][outputs]``, the outputs padded with zeros to panels.
    """
    channels, width = sizes.channels, sizes.width
    words, table_words = (width * channels + (WORD - 1)) // WORD, (channels + (WORD - 1)) // WORD
    panels = (outputs + (row.floats - 1)) // row.floats
    padded = panels * row.floats
    taps = sizes.kernel_height * sizes.kernel_width
    pieces = taps * panels
    copies = outputs < padded
    with code.scratch(
        (Floats, padded),
        (Floats, copies.select(padded * taps, 0)),
        (Longs, pieces),
        (Shorts, table_words * WORD + SLACK),
        (Longs, words + 1),
    ) as (nothing, near, places, index, pixels):
        nothing.clear(padded)
        near.clear(copies.select(padded * taps, 0))
        pixels[words] = 0
        with code.loop(begin, end) as item:
            image, y = item // sizes.height, item % sizes.height
            (target + item * width * channels).clear(width * channels)
            pixels.copy(bits + words * item, words)
            with code.loop(0, width) as x:
                n = code.variable(0)
                with code.loop(0, channels, WORD) as base:
                    count = (channels - base).smaller(WORD)
                    here = bits_from(pixels, x * channels + base) & first_bits(code, count)
                    with code.when(here.differs(0)):
                        n.value = listed(code, row, here, base, index, n.value)
                with code.when(n.value > 0):
                    with (
                        code.loop(0, sizes.kernel_height) as i,
                        code.loop(0, sizes.kernel_width) as j,
                    ):
                        down = y + sizes.padding_down - i * sizes.dilation_down
                        across = x + sizes.padding_across - j * sizes.dilation_across
                        tap = i * sizes.kernel_width + j
                        inside = (down >= 0) & (down < sizes.out_height)
                        inside &= (across >= 0) & (across < sizes.out_width)
                        pixel = (image * sizes.out_height + down) * sizes.out_width + across
                        at: Pointer = gradient + outputs * pixel
                        copy = near + padded * tap
                        with code.when(inside & copies):
                            copy.copy(at, outputs)
                        at = nothing.instead(inside, at.instead(copies, copy))
                        with code.loop(0, panels) as piece:
                            places[tap * panels + piece] = (at + row.floats * piece).address()
                    out = target + (item * width + x) * channels
                    dots(
                        code,
                        row,
                        out,
                        places,
                        table,
                        pieces,
                        table_words * (WORD * row.floats),
                        index,
                        n.value,
                    )
