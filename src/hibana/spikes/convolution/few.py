"""The gradient of a convolution's input, from the values of a gradient that is mostly zero."""

from hibana.runtime.kernels import FLOAT, INT, Code, Floats, Ints, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.convolution.kernels import Sizes
from hibana.spikes.simd.lists import SLACK, WORD, listed, values_together, words_of
from hibana.spikes.simd.rows import LANES, Row, add_scaled_rows

__all__ = ["input_gradient_of_few"]

NEAR = 1 << 15
"""Bytes of a table that the nearest cache holds."""


@kernel
def input_gradient_of_few(
    code: Code,
    begin: Value,
    end: Value,
    *,
    table: Floats,
    gradient: Floats,
    target: Floats,
    sizes: Sizes,
    outputs: Value,
    deep: Value,
    row: Row,
) -> None:
    """The input's gradient at stride 1, from the values of a gradient that is mostly zero.

    Each value of it adds its row of the table: for each panel of the input's channels,
    ``[kernel height][kernel width][outputs][panel]``. One piece of work is `deep` rows of input pixels; a row
    of the kernel is gone through at a time, or one of its weights if a row of them is too large to be near.
    Neighbours in a row of the gradient are neighbours in the list, and their tables lie as they do: the
    weights of a kernel's row are one stretch of the list.
    """
    channels, width, out_width = sizes.channels, sizes.width, sizes.out_width
    table_rows = words_of(sizes.kernel_height * sizes.kernel_width * outputs) * WORD
    parts = (sizes.height + deep - 1) // deep
    fits = sizes.kernel_width * outputs * (row.floats * FLOAT.size) <= NEAR
    together = sizes.dilation_across.equals(1) & fits
    across = together.select(sizes.kernel_width, 1)
    pixels = (deep + (sizes.kernel_height - 1) * sizes.dilation_down) * out_width
    with code.scratch(
        (Floats, row.floats),
        (Floats, deep * width * row.floats),
        (Floats, WORD),
        (Longs, pixels + 1),
        (Ints, pixels * outputs + SLACK),
        (Floats, pixels * outputs + SLACK),
        (Shorts, outputs + SLACK),
    ) as (nothing, block, tail, first, offsets, values, index):
        nothing.clear(row.floats)
        with code.loop(begin, end) as item:
            image, upper = item // parts, item % parts * deep
            lower = (upper + deep).smaller(sizes.height)
            top = (upper + sizes.padding_down - (sizes.kernel_height - 1) * sizes.dilation_down).larger(0)
            bottom = (lower + sizes.padding_down).smaller(sizes.out_height)
            n, pixel = code.variable(0), code.variable(0)
            with code.loop(top, bottom) as down:
                at = gradient + outputs * (image * sizes.out_height + down) * out_width
                with code.loop(0, out_width) as q:
                    first[pixel.value] = n.value
                    n.value = _listed_values(
                        code,
                        row,
                        at + outputs * q,
                        outputs,
                        tail,
                        index,
                        q * outputs,
                        offsets,
                        values,
                        n.value,
                    )
                    pixel.value += 1
            first[pixel.value] = n.value
            with code.loop(0, row.panels(channels)) as panel:
                into = target + channels * (image * sizes.height + upper) * width
                done = (lower - upper) * width
                tables = table + table_rows * panel * row.floats
                with (
                    row.placed(code, panel, into, channels, done, block) as (out, pitch),
                    code.loop(0, sizes.kernel_height) as i,
                    code.loop(0, sizes.kernel_width, across) as j,
                    code.loop(upper, lower) as y,
                ):
                    down = y + sizes.padding_down - i * sizes.dilation_down
                    begun = (down - top) * out_width
                    with code.loop(0, width) as x:
                        at = out + pitch * ((y - upper) * width + x)
                        right = x + sizes.padding_across - j * sizes.dilation_across
                        left = (right - across + 1).larger(0)
                        here, there = code.variable(0), code.variable(0)
                        inside = (down >= 0) & (down < sizes.out_height) & (left < out_width) & (right >= 0)
                        with code.when(inside):
                            here.value = first[begun + left]
                            there.value = first[begun + (right + 1).smaller(out_width)]
                        begins = nothing.instead((i > 0) | (j > 0), at)
                        rows_at = tables + outputs * (i * sizes.kernel_width + j + right) * row.floats
                        begin_at, count = here.value, there.value - here.value
                        add_scaled_rows(
                            code, row, at, begins, rows_at, offsets + begin_at, values + begin_at, count
                        )


def _listed_values(
    code: Code,
    row: Row,
    gradient: Pointer,
    outputs: Value,
    tail: Pointer,
    index: Pointer,
    shift: Value,
    offsets: Pointer,
    values: Pointer,
    n: Value,
) -> Value:
    """Appends the values other than zero of one pixel's `outputs`: what they are, and the rows of a table.

    The row of output ``o`` is ``o - shift`` rows from where the table will be said to begin.
    """
    count = code.variable(0)

    def append(at: Pointer, base: Value) -> None:
        word = at.load(WORD).differs(0.0).word()
        values_together(code, row, values + (n + count.value), at, word)
        count.value = listed(code, row, word, base, index, count.value)

    whole = outputs - outputs % WORD
    with code.loop(0, whole, WORD) as base:
        append(gradient + base, base)
    with code.when(whole < outputs):
        tail.clear(WORD)
        tail.copy(gradient + whole, outputs - whole)
        append(tail, whole)
    with code.loop(0, count.value, LANES) as k:
        chosen = (index + k).load(LANES).to(INT)
        spread = (chosen - shift.to(INT).spread(LANES)) * (row.floats * FLOAT.size)
        (offsets + (n + k)).store(spread)
    return n + count.value
