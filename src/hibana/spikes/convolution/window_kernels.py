"""Kernels of a convolution of few channels, whose whole window of weights stays in the L1 cache.

Each row of the output has a list of its own, pixel by pixel what lies under a column of the window there. So
what is under a window is one stretch of it; or, at a stride of 1, each column is gone through once for all
the windows that it lies under, of which the sums are in registers meanwhile.
"""

from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.convolution.kernels import Sizes
from hibana.spikes.convolution.pixel_kernels import Input, Words
from hibana.spikes.simd.lists import HALF, SLACK, WORD, bits_from, first_bits, listed, words_of
from hibana.spikes.simd.rows import Row, add_listed, add_rows, begin_with

__all__ = ["forward"]


class _Columns(NamedTuple):
    """Where in a table the rows are of what lies under a window: how far from the first of all."""

    plane: Value
    """For each plane before."""
    column: Value
    """For each column of pixels before."""
    row: Value
    """For each row of the window before."""
    channel: Value

    def listed(
        self, code: Code, row: Row, words: Words, image: Value, y: Value, index: Pointer, first: Pointer
    ) -> None:
        """Lists them for row `y` of the output, column by column; `first` says where those of each begin."""
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
    """The memory that a list takes: its rows of pixels, where each column begins, and the list."""
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
    """Rows of output pixels, of at most HALF channels; one piece of work is `deep` of them.

    Windows slide if `unrolled` is not 0: it is their width then, and the stride across is 1. To each sum is
    added in the same order. The table holds for each panel and plane ``[kernel width][kernel height]
    [channels][panel]``, or of windows that slide ``[channels][kernel height][kernel width][panel]``, as the
    weights lie; those of a plane are filled up to 64 rows.
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
    """A row of windows, and where a panel of their sums goes: the first, and how far from it the next."""

    code: Code
    row: Row
    sizes: Sizes
    weights: Pointer
    listed: Pointer
    first: Pointer
    """Where in the list each column begins."""
    begun: Pointer
    """What sums begin with."""
    out: Pointer
    pitch: Value

    def one_by_one(self, column: Value) -> None:
        """Their sums, each of one stretch of the list."""
        code, row, sizes, weights, index, first, begun, out, pitch = self
        with code.loop(0, sizes.out_width) as x:
            left = x * sizes.stride_across - sizes.padding_across
            here = first[left.larger(0).smaller(sizes.width)]
            there = first[(left + sizes.kernel_width).larger(0).smaller(sizes.width)]
            of_window = weights + (0 - left) * column * row.floats
            add_rows(code, row, out + pitch * x, begun, of_window, index + here, there - here)

    def slide(self, outside: Pointer, unrolled: int) -> None:
        """Their sums, to all of which a column is added at once; others go `outside`."""
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
