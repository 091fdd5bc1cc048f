"""Kernels of a convolution of few channels, whose whole window of weights stays in the L1 cache.

For each row of the output, the spikes in the rows of pixels under it are listed column by column. The spikes
under a window are then a contiguous part of that list. Or, at a stride of 1, each column is added once to all
windows over it, whose sums are in registers.
"""

from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.convolution.kernels import Sizes
from hibana.spikes.convolution.pixel_kernels import Input, Words
from hibana.spikes.simd.lists import HALF, SLACK, WORD, bits_from, first_bits, listed, words_of
from hibana.spikes.simd.rows import Row, add_listed, add_rows, begin_with

__all__ = ["forward"]


class _Columns(NamedTuple):
    """Strides of the table of weights, in rows, by plane, column, row and channel under a window."""

    plane: Value
    """From plane to plane."""
    column: Value
    """From column to column of pixels."""
    row: Value
    """From row to row of the window."""
    channel: Value

    def listed(
        self, code: Code, row: Row, words: Words, image: Value, y: Value, index: Pointer, first: Pointer
    ) -> None:
        """Lists the spikes under row `y` of the output, column by column; writes the start of each column to
        `first`.
        """
        sizes, planes = words.sizes, words.input.planes
        pitch = words_of(sizes.width * sizes.channels) + 1
        with code.loop(0, planes) as plane, code.loop(0, sizes.kernel_height) as i:
            of_row = words._replace(pixels=words.pixels + (plane * sizes.kernel_height + i) * pitch)
            down = y * sizes.stride_down - sizes.padding_down + i * sizes.dilation_down
            inside = (down >= 0) & (down < sizes.height)
            with code.when(~inside):
                of_row.pixels.clear(pitch)
            with code.when(inside):
                of_row.bring(plane, image, down)
                of_row.pixels[of_row.row] = 0
        n, ones = code.variable(0), first_bits(code, sizes.channels)
        with code.loop(0, sizes.width) as x:
            first[x] = n.value
            position = code.variable(x * sizes.channels)
            with code.loop(0, planes) as plane:
                base = code.variable(plane * self.plane + x * self.column)
                with code.loop(0, sizes.kernel_height):
                    word = bits_from(words.pixels, position.value) & ones
                    n.value = listed(code, row, word, base.value, index, n.value, HALF, self.channel)
                    base.value += self.row
                    position.value += pitch * WORD
        first[sizes.width] = n.value


def _scratch(input_: Input, sizes: Sizes) -> tuple[tuple[type[Pointer], Value], ...]:
    """Scratch memory of a list: its rows of pixels, the start of each column, and the list itself."""
    column = input_.planes * sizes.kernel_height
    return (
        (Longs, column * (words_of(sizes.width * sizes.channels) + 1)),
        (Longs, sizes.width + 1),
        (Shorts, column * sizes.width * sizes.channels + SLACK),
    )


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
    input_: Input,
    sizes: Sizes,
    outputs: Value,
    deep: Value,
    row: Row,
    unrolled: int,
) -> None:
    """Rows of output pixels, for at most HALF channels; one work item is `deep` rows.

    With `unrolled` 0, each window is summed by itself. Else `unrolled` is the width of a window, the
    horizontal stride is 1, and each column is added to all windows over it. The order of a sum is the same.
    The table holds for each panel and plane ``[kernel width][kernel height][channels][panel]``, or, with
    `unrolled`, ``[channels][kernel height][kernel width][panel]``; each plane is padded to 64 rows.
    """
    out_width, column = sizes.out_width, sizes.kernel_height * sizes.channels
    plane_rows = words_of(sizes.kernel_width * column) * WORD
    pieces = (sizes.out_height + deep - 1) // deep
    if unrolled:
        window = sizes.kernel_height * unrolled
        columns = _Columns(plane_rows, code.constant(0), code.constant(unrolled), window)
    else:
        columns = _Columns(plane_rows, column, sizes.channels, code.constant(1))
    with (
        code.scratch(
            (Floats, row.floats),
            (Floats, row.floats),
            (Floats, out_width * row.floats),
            *_scratch(input_, sizes),
        ) as parts,
        code.loop(begin, end) as item,
    ):
        begun, outside, block, pixels, first, index = parts
        words = Words(input_, sizes, bits, pixels)
        image, upper = item // pieces, item % pieces * deep
        with code.loop(upper, (upper + deep).smaller(sizes.out_height)) as y:
            columns.listed(code, row, words, image, y, index, first)
            into = target + outputs * (image * sizes.out_height + y) * out_width
            with code.loop(0, row.panels(outputs)) as panel:
                begin_with(code, row, begun, bias, panel, outputs)
                weights = table + panel * input_.planes * plane_rows * row.floats
                with row.placed(code, panel, into, outputs, out_width, block) as (out, pitch):
                    windows = _Windows(code, row, sizes, weights, index, first, begun, out, pitch)
                    if unrolled:
                        windows.slide(outside, unrolled)
                    else:
                        windows.one_by_one(columns.column)


class _Windows(NamedTuple):
    """A row of windows, their lists and weights, and the target of a panel of their sums."""

    code: Code
    row: Row
    sizes: Sizes
    weights: Pointer
    listed: Pointer
    first: Pointer
    """Start of each column in the list."""
    begun: Pointer
    """Initial value of the sums."""
    out: Pointer
    pitch: Value

    def one_by_one(self, column: Value) -> None:
        """Computes the sums of a row's windows one by one, each from its part of the list of spikes."""
        code, row, sizes, weights, index, first, begun, out, pitch = self
        with code.loop(0, sizes.out_width) as x:
            left = x * sizes.stride_across - sizes.padding_across
            here = first[left.larger(0).smaller(sizes.width)]
            there = first[(left + sizes.kernel_width).larger(0).smaller(sizes.width)]
            of_window = weights + (0 - left) * column * row.floats
            add_rows(code, row, out + pitch * x, begun, of_window, index + here, there - here)

    def slide(self, outside: Pointer, unrolled: int) -> None:
        """Computes the sums of a row's windows from the columns of the input in turn.

        A column's spikes are added to all windows over it; those left of the first go to `outside`.
        """
        code, row, sizes, weights, index, first, begun, out, pitch = self
        # of the window that begins last, of the one before it, …
        sums = [[code.variable(value) for value in row.load(begun)] for _ in range(unrolled)]
        all_sums = [total for of_one in sums for total in of_one]
        with code.loop(1 - unrolled, sizes.out_width) as x:
            column = x + (unrolled - 1) - sizes.padding_across
            at = first + column.larger(0).smaller(sizes.width - 1)
            count = ((column >= 0) & (column < sizes.width)).select(at[1] - at[0], 0)
            add_listed(code, all_sums, weights, row.floats, index + at[0], count, ahead=1)
            row.store([total.value for total in sums[-1]], outside.instead(x >= 0, out + pitch * x))
            for before in reversed(range(1, unrolled)):
                for total, later in zip(sums[before], sums[before - 1], strict=True):
                    total.value = later.value
            for total, value in zip(sums[0], row.load(begun), strict=True):
                total.value = value
