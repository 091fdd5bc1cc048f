"""Kernels of a convolution that list the spikes of each pixel once, for all windows that contain it.

The list of a row of pixels is in the order of pixels and channels, and so are the weights of a row of the
kernel, ``[kernel width][channels]``. So the spikes under one row of a window are a contiguous part of that
list, and the index of a weight row is the number in the list plus an offset. In the weight gradient, all
pixels of a window share one list per channel; each has its own offset into the output gradient.
"""

from hibana.runtime.kernels import Code, Floats, Group, Longs, Shorts, Value, kernel
from hibana.spikes.convolution.kernels import PaddedGradient, PixelBits, Sizes
from hibana.spikes.simd.lists import SLACK, WORD, append_bits, transpose_bits, words_of
from hibana.spikes.simd.rows import Row, add_rows, load_bias, transpose

__all__ = ["Input", "forward", "weight_gradient"]


class Input(Group):
    """Numbers of images and of planes of the bits ``[planes][images * height][words of a row of pixels]``."""

    images: Value
    planes: Value


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
    tile_height: Value,
    per_tile: Value,
    row: Row,
) -> None:
    """Writes rows of output pixels: the bias plus the weight rows of the spikes under each window.

    One work item is `tile_height` rows of an image, or all rows of `per_tile` images. Its sums are computed
    for one row of the kernel and 64 channels at a time, whose weights stay in the cache. The table holds
    ``[panels][planes][kernel height][kernel width][channels][panel]``, each plane padded to a multiple of 64
    rows. `bias` may be null.
    """
    channels, width, out_width = sizes.channels, sizes.width, sizes.out_width
    kernel_width, pieces = sizes.kernel_width, (sizes.out_height + tile_height - 1) // tile_height
    plane_rows = words_of(sizes.kernel_height * kernel_width * channels) * WORD
    lists = input_.planes * words_of(channels)
    tall = (tile_height - 1) * sizes.stride_down + (sizes.kernel_height - 1) * sizes.dilation_down + 1
    with (
        code.scratch(
            (Floats, row.floats),
            (Floats, per_tile * tile_height * out_width * row.floats),
            (Longs, words_of(width * channels) + 1),
            (Longs, per_tile * lists * tall * width + 1),
            (Shorts, per_tile * input_.planes * tall * width * channels + SLACK),
        ) as (initial, block, pixels, first, index),
        code.loop(begin, end, per_tile) as item,
    ):
        images = (end - item).smaller(per_tile)
        image, upper = item // pieces, item % pieces * tile_height
        lower = (upper + tile_height).smaller(sizes.out_height)
        above = upper * sizes.stride_down - sizes.padding_down
        top, bottom = above.larger(0), (above + tall).smaller(sizes.height)
        pixel_bits = PixelBits(code, sizes, bits, pixels)
        n, number = code.variable(0), code.variable(0)
        with code.loop(0, lists) as part, code.loop(0, images) as k, code.loop(top, bottom) as y:
            plane = part // pixel_bits.pixel_words
            pixel_bits.load_row((plane * input_.images + image + k) * sizes.height + y)
            with code.loop(0, width) as x:
                word, first[number.value] = part % pixel_bits.pixel_words, n.value
                base = x * channels + word * WORD
                n.value = append_bits(code, row, pixel_bits.channel_bits(x, word), base, index, n.value)
                number.value += 1
        first[number.value] = n.value
        across = sizes.dilation_across.equals(1).select(kernel_width, 1)
        tile = target + outputs * (image * sizes.out_height + upper) * out_width
        rows, input_rows = lower - upper, bottom - top
        pixel_count = images * rows * out_width
        with code.loop(0, row.panels(outputs)) as panel:
            load_bias(code, row, initial, bias, panel, outputs)
            with (
                row.writable_panel(code, panel, tile, outputs, pixel_count, block) as (out, pitch),
                code.loop(0, lists) as part,
                code.loop(0, sizes.kernel_height) as i,
                code.loop(0, kernel_width, across) as j,
                code.loop(0, images) as k,
                code.loop(0, rows) as y,
            ):
                down = above + y * sizes.stride_down + i * sizes.dilation_down
                inside = (down >= top) & (down < bottom)
                line = first + inside.select(((part * images + k) * input_rows + down - top) * width, 0)
                plane = panel * input_.planes + part // pixel_bits.pixel_words
                is_later = (part > 0) | (i > 0) | (j > 0)
                with code.loop(0, out_width) as x:
                    at = out + pitch * ((k * rows + y) * out_width + x)
                    left = x * sizes.stride_across - sizes.padding_across + j * sizes.dilation_across
                    list_begin = line[left.larger(0).smaller(width)]
                    list_end = line[(left + across).larger(0).smaller(width)]
                    count = inside.select(list_end - list_begin, 0)
                    first_row = plane * plane_rows + (i * kernel_width + j - left) * channels
                    weights, start = table + first_row * row.floats, initial.replace_if(is_later, at)
                    add_rows(code, row, at, start, weights, index + list_begin, count)


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
    tile_height: Value,
    per_tile: Value,
    parts_across: Value,
    parts_down: Value,
    per_part: Value,
    row: Row,
    unrolled: int,
) -> None:
    """Writes parts of the weight gradient at stride 1, ``[outputs][planes][kernel pixels][channels]``.

    A part is a range of panels of outputs, and a range of units, over `per_part` images. A unit is a plane, a
    word of channels, and a row of the kernel. `tile_height` rows of `per_tile` images are processed at a
    time. Their pixels are numbered in rows of ``width + reach`` pixels, where reach is the distance from the
    first to the last pixel of a window's row; the output gradient around them is copied to a buffer with the
    same pitch, padded with zeros. `unrolled` adjacent pixels of the window are processed at a time: all of a
    row, or 1.
    """
    channels, width = sizes.channels, sizes.width
    taps = sizes.kernel_height * sizes.kernel_width
    inputs = input_.planes * taps * channels
    reach_down = (sizes.kernel_height - 1) * sizes.dilation_down
    reach_across = (sizes.kernel_width - 1) * sizes.dilation_across
    pitch, tall = width + reach_across, tile_height + reach_down
    blocks = words_of(per_tile * tall * pitch)
    lists, panels = input_.planes * words_of(channels), row.panels(outputs)
    units = lists * sizes.kernel_height
    most_panels = (panels + parts_across - 1) // parts_across
    most_units = (units + parts_down - 1) // parts_down
    row_floats = sizes.kernel_width * (WORD * row.floats)
    padded = PaddedGradient(code, row, gradient, outputs, sizes)
    with (
        code.scratch(
            (Floats, most_panels * most_units * row_floats),
            (Floats, per_tile * tall * pitch * row.floats),
            (Longs, words_of(width * channels) + 1),
            (Longs, blocks * WORD),
            (Longs, lists * WORD + 1),
            (Shorts, input_.planes * channels * per_tile * tile_height * width + SLACK),
        ) as (sums, tile_gradient, pixels, columns, first, index),
        code.loop(begin, end) as part,
    ):
        across, down = part // parts_down % parts_across, part % parts_down
        share = part // parts_down // parts_across
        panel_begin, panel_end = panels * across // parts_across, panels * (across + 1) // parts_across
        unit_begin, unit_end = units * down // parts_down, units * (down + 1) // parts_down
        pixel_bits = PixelBits(code, sizes, bits, pixels)
        sums.clear((panel_end - panel_begin) * (unit_end - unit_begin) * row_floats)
        last = (per_part * (share + 1)).smaller(input_.images)
        with (
            code.loop(per_part * share, last, per_tile) as image,
            code.loop(0, sizes.height, tile_height) as top,
        ):
            count, rows = (last - image).smaller(per_tile), (sizes.height - top).smaller(tile_height)
            n = code.variable(0)
            with code.loop(0, lists) as list_:
                plane, word = list_ // pixel_bits.pixel_words, list_ % pixel_bits.pixel_words
                columns.clear(blocks * WORD)
                with code.loop(0, count) as k, code.loop(0, rows) as y:
                    pixel_bits.load_row((plane * input_.images + image + k) * sizes.height + top + y)
                    with code.loop(0, width) as x:
                        columns[(k * tall + y) * pitch + x] = pixel_bits.channel_bits(x, word)
                with code.loop(0, blocks) as b:
                    transpose_bits(code, columns + b * WORD)
                with code.loop(0, WORD) as channel:
                    first[list_ * WORD + channel] = n.value
                    with code.loop(0, blocks) as b:
                        column = columns[b * WORD + channel]
                        n.value = append_bits(code, row, column, b * WORD, index, n.value)
            first[lists * WORD] = n.value
            upper = top + sizes.padding_down - reach_down
            start = sizes.padding_across - reach_across
            with code.loop(panel_begin, panel_end) as panel:
                with code.loop(0, count) as k, code.loop(0, rows + reach_down) as y:
                    to = tile_gradient + (k * tall + y) * pitch * row.floats
                    padded.copy(to, panel, image + k, upper + y, start, pitch)
                panel_sums = sums + (panel - panel_begin) * (unit_end - unit_begin) * row_floats
                with (
                    code.loop(unit_begin, unit_end) as unit,
                    code.loop(0, sizes.kernel_width, unrolled) as from_last,
                ):
                    lags_down = (sizes.kernel_height - 1 - unit % sizes.kernel_height) * sizes.dilation_down
                    lags_across = from_last * sizes.dilation_across
                    gradients = tile_gradient + (lags_down * pitch + lags_across) * row.floats
                    list_ = unit // sizes.kernel_height
                    channel_count = (channels - list_ % pixel_bits.pixel_words * WORD).smaller(WORD)
                    unit_sums = panel_sums + (unit - unit_begin) * row_floats + from_last * row.floats
                    with code.loop(0, channel_count) as channel:
                        at = unit_sums + channel * sizes.kernel_width * row.floats
                        begins = first + (list_ * WORD + channel)
                        length = begins[1] - begins[0]
                        add_rows(code, row, at, at, gradients, index + begins[0], length, unrolled)
        with (
            code.loop(panel_begin, panel_end) as panel,
            code.loop(unit_begin, unit_end) as unit,
            code.loop(0, sizes.kernel_width) as j,
        ):
            output = panel * row.floats
            list_, i = unit // sizes.kernel_height, unit % sizes.kernel_height
            plane, word = list_ // pixel_bits.pixel_words, list_ % pixel_bits.pixel_words
            unit_sums = (
                sums + ((panel - panel_begin) * (unit_end - unit_begin) + unit - unit_begin) * row_floats
            )
            from_last = sizes.kernel_width - 1 - j
            tap = (plane * sizes.kernel_height + i) * sizes.kernel_width + j
            to = targets + (outputs * inputs * share + output * inputs + tap * channels + word * WORD)
            channel_count = (channels - word * WORD).smaller(WORD)
            output_count = (outputs - output).smaller(row.floats)
            source, pitch = unit_sums + from_last * row.floats, sizes.kernel_width * row.floats
            transpose(code, to, inputs, source, pitch, channel_count, output_count)
