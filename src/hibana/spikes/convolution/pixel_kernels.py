"""Kernels of a convolution that list the spikes of each pixel once, for all windows that contain it.

The list of a row of pixels is in the order of its pixels and channels, and so are the weights of a kernel's
row, ``[kernel width][channels]``. So the spikes under one row of a window are a contiguous part of that list,
and the rows of weights that they select are the listed numbers plus an offset. In the weight gradient, all
places of a window likewise share one list per channel, with another offset into the gradient each.
"""

from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Group, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.convolution.kernels import Sizes, brought_near
from hibana.spikes.simd.lists import (
    SLACK,
    WORD,
    bits_from,
    first_bits,
    listed,
    transposed_bits,
    words_of,
)
from hibana.spikes.simd.rows import Row, add_rows, begin_with, transposed

__all__ = ["Input", "Words", "forward", "weight_gradient"]


class Input(Group):
    """Planes of bits, ``[planes][images * height][words of a row of pixels]``."""

    images: Value
    planes: Value


class Words(NamedTuple):
    """Access to the bits of a row of pixels, copied to `pixels`."""

    input: Input
    sizes: Sizes
    bits: Pointer
    pixels: Pointer

    @property
    def row(self) -> Value:
        """How many 64-bit words hold one row of pixels."""
        return words_of(self.sizes.width * self.sizes.channels)

    @property
    def each(self) -> Value:
        """How many 64-bit words hold the channels of one pixel."""
        return words_of(self.sizes.channels)

    def bring(self, plane: Value, image: Value, y: Value) -> None:
        """Copies a row of pixels to `pixels`, which has room for reading beyond its end."""
        at = (plane * self.input.images + image) * self.sizes.height + y
        self.pixels.copy(self.bits + self.row * at, self.row)

    def of(self, code: Code, x: Value, word: Value) -> Value:
        """The bits of the 64 (or remaining) channels of pixel `x` from channel 64 * `word` on."""
        channels = self.sizes.channels
        there = first_bits(code, (channels - word * WORD).smaller(WORD))
        return bits_from(self.pixels, x * channels + word * WORD) & there


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
    per_tile: Value,
    row: Row,
) -> None:
    """Rows of output pixels: for each spike under a window, the spike's row of weights is added.

    One work item is `deep` rows of an image, or `per_tile` whole images. Its sums are computed for one row of
    the kernel and 64 channels at a time, whose weights stay in the cache. The table holds
    ``[panels][planes][kernel height][kernel width][channels][panel]``, each plane padded to 64 rows.
    """
    channels, width, out_width = sizes.channels, sizes.width, sizes.out_width
    kernel_width, pieces = sizes.kernel_width, (sizes.out_height + deep - 1) // deep
    plane_rows = words_of(sizes.kernel_height * kernel_width * channels) * WORD
    lists = input_.planes * words_of(channels)
    tall = (deep - 1) * sizes.stride_down + (sizes.kernel_height - 1) * sizes.dilation_down + 1
    with (
        code.scratch(
            (Floats, row.floats),
            (Floats, per_tile * deep * out_width * row.floats),
            (Longs, words_of(width * channels) + 1),
            (Longs, per_tile * lists * tall * width + 1),
            (Shorts, per_tile * input_.planes * tall * width * channels + SLACK),
        ) as (begun, block, pixels, first, index),
        code.loop(begin, end, per_tile) as item,
    ):
        images = (end - item).smaller(per_tile)
        image, upper = item // pieces, item % pieces * deep
        lower = (upper + deep).smaller(sizes.out_height)
        above = upper * sizes.stride_down - sizes.padding_down
        top, bottom = above.larger(0), (above + tall).smaller(sizes.height)
        words = Words(input_, sizes, bits, pixels)
        pixels[words.row] = 0
        n, place = code.variable(0), code.variable(0)
        with code.loop(0, lists) as part, code.loop(0, images) as k, code.loop(top, bottom) as y:
            words.bring(part // words.each, image + k, y)
            with code.loop(0, width) as x:
                word, first[place.value] = part % words.each, n.value
                base = x * channels + word * WORD
                n.value = listed(code, row, words.of(code, x, word), base, index, n.value)
                place.value += 1
        first[place.value] = n.value
        across = sizes.dilation_across.equals(1).select(kernel_width, 1)
        into = target + outputs * (image * sizes.out_height + upper) * out_width
        rows, rows_under = lower - upper, bottom - top
        with code.loop(0, row.panels(outputs)) as panel:
            begin_with(code, row, begun, bias, panel, outputs)
            with (
                row.placed(code, panel, into, outputs, images * rows * out_width, block) as (out, pitch),
                code.loop(0, lists) as part,
                code.loop(0, sizes.kernel_height) as i,
                code.loop(0, kernel_width, across) as j,
                code.loop(0, images) as k,
                code.loop(0, rows) as y,
            ):
                down = above + y * sizes.stride_down + i * sizes.dilation_down
                inside = (down >= top) & (down < bottom)
                line = first + inside.select(((part * images + k) * rows_under + down - top) * width, 0)
                plane = table + (panel * input_.planes + part // words.each) * plane_rows * row.floats
                later = (part > 0) | (i > 0) | (j > 0)
                with code.loop(0, out_width) as x:
                    at = out + pitch * ((k * rows + y) * out_width + x)
                    left = x * sizes.stride_across - sizes.padding_across + j * sizes.dilation_across
                    here = line[left.larger(0).smaller(width)]
                    there = line[(left + across).larger(0).smaller(width)]
                    count = inside.select(there - here, 0)
                    weights = plane + (i * kernel_width + j - left) * channels * row.floats
                    add_rows(code, row, at, begun.replace_if(later, at), weights, index + here, count)


@kernel
def weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    gradient: Floats,
    targets: Floats,
    input_: Input,
    sizes: Sizes,
    outputs: Value,
    deep: Value,
    per_tile: Value,
    parts_across: Value,
    parts_down: Value,
    per_part: Value,
    row: Row,
    unrolled: int,
) -> None:
    """Parts of the weights' gradient at stride 1, ``[outputs][planes][kernel height and width][channels]``.

    Each part is of some panels of outputs and some planes, words of channels and rows of the kernel, over
    `per_part` images. `deep` rows of `per_tile` images are done at a time: their pixels are places in rows
    that end with as many zeros as a window reaches across, the gradient's that lie around them likewise.
    Places of the window that lie `unrolled` one another are done at a time: all of a row, or 1.
    """
    channels, width = sizes.channels, sizes.width
    taps = sizes.kernel_height * sizes.kernel_width
    inputs = input_.planes * taps * channels
    reach_down = (sizes.kernel_height - 1) * sizes.dilation_down
    reach_across = (sizes.kernel_width - 1) * sizes.dilation_across
    pitch, tall = width + reach_across, deep + reach_down
    blocks = words_of(per_tile * tall * pitch)
    lists, panels = input_.planes * words_of(channels), row.panels(outputs)
    units = lists * sizes.kernel_height
    most_wide = (panels + parts_across - 1) // parts_across
    most_units = (units + parts_down - 1) // parts_down
    row_floats = sizes.kernel_width * (WORD * row.floats)
    with (
        code.scratch(
            (Floats, most_wide * most_units * row_floats),
            (Floats, per_tile * tall * pitch * row.floats),
            (Longs, words_of(width * channels) + 1),
            (Longs, blocks * WORD),
            (Longs, lists * WORD + 1),
            (Shorts, input_.planes * channels * per_tile * deep * width + SLACK),
        ) as (sums, near, pixels, columns, first, index),
        code.loop(begin, end) as part,
    ):
        across, down = part // parts_down % parts_across, part % parts_down
        share = part // parts_down // parts_across
        panel_begin, panel_end = panels * across // parts_across, panels * (across + 1) // parts_across
        unit_begin, unit_end = units * down // parts_down, units * (down + 1) // parts_down
        words = Words(input_, sizes, bits, pixels)
        pixels[words.row] = 0
        sums.clear((panel_end - panel_begin) * (unit_end - unit_begin) * row_floats)
        last = (per_part * (share + 1)).smaller(input_.images)
        with (
            code.loop(per_part * share, last, per_tile) as image,
            code.loop(0, sizes.height, deep) as top,
        ):
            count, rows = (last - image).smaller(per_tile), (sizes.height - top).smaller(deep)
            n = code.variable(0)
            with code.loop(0, lists) as list_:
                plane, word = list_ // words.each, list_ % words.each
                columns.clear(blocks * WORD)
                with code.loop(0, count) as k, code.loop(0, rows) as y:
                    words.bring(plane, image + k, top + y)
                    with code.loop(0, width) as x:
                        columns[(k * tall + y) * pitch + x] = words.of(code, x, word)
                with code.loop(0, blocks) as b:
                    transposed_bits(code, columns + b * WORD)
                with code.loop(0, WORD) as channel:
                    first[list_ * WORD + channel] = n.value
                    with code.loop(0, blocks) as b:
                        n.value = listed(code, row, columns[b * WORD + channel], b * WORD, index, n.value)
            first[lists * WORD] = n.value
            upper = top + sizes.padding_down - reach_down
            begun = sizes.padding_across - reach_across
            with code.loop(panel_begin, panel_end) as panel:
                with code.loop(0, count) as k, code.loop(0, rows + reach_down) as y:
                    there = (upper + y >= 0) & (upper + y < sizes.out_height)
                    line = gradient + outputs * ((image + k) * sizes.out_height + upper + y) * sizes.out_width
                    to = near + (k * tall + y) * pitch * row.floats
                    with code.when(~there):
                        to.clear(pitch * row.floats)
                    with code.when(there):
                        brought_near(
                            code, row, to, line + panel * row.floats, begun, pitch, panel, sizes, outputs
                        )
                done = sums + (panel - panel_begin) * (unit_end - unit_begin) * row_floats
                with (
                    code.loop(unit_begin, unit_end) as unit,
                    code.loop(0, sizes.kernel_width, unrolled) as from_last,
                ):
                    lags_down = (sizes.kernel_height - 1 - unit % sizes.kernel_height) * sizes.dilation_down
                    lags_across = from_last * sizes.dilation_across
                    rows_at = near + (lags_down * pitch + lags_across) * row.floats
                    list_ = unit // sizes.kernel_height
                    there = (channels - list_ % words.each * WORD).smaller(WORD)
                    into = done + (unit - unit_begin) * row_floats + from_last * row.floats
                    with code.loop(0, there) as channel:
                        at = into + channel * sizes.kernel_width * row.floats
                        place = first + (list_ * WORD + channel)
                        add_rows(code, row, at, at, rows_at, index + place[0], place[1] - place[0], unrolled)
        with (
            code.loop(panel_begin, panel_end) as panel,
            code.loop(unit_begin, unit_end) as unit,
            code.loop(0, sizes.kernel_width) as j,
        ):
            output = panel * row.floats
            list_, i = unit // sizes.kernel_height, unit % sizes.kernel_height
            plane, word = list_ // words.each, list_ % words.each
            done = sums + ((panel - panel_begin) * (unit_end - unit_begin) + unit - unit_begin) * row_floats
            tap = (plane * sizes.kernel_height + i) * sizes.kernel_width + j
            into = targets + (outputs * inputs * share + output * inputs + tap * channels + word * WORD)
            inside = (channels - word * WORD).smaller(WORD)
            there = (outputs - output).smaller(row.floats)
            done = done + (sizes.kernel_width - 1 - j) * row.floats
            transposed(code, into, inputs, done, sizes.kernel_width * row.floats, inside, there)
