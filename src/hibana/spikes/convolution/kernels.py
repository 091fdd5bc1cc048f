"""Kernels of a convolution: im2col of bits, and the input gradient restricted to a mask.

Images are channels last, ``[images, height, width, channels]``; a row of pixels is one row of bits.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Group, Longs, Pointer, Shorts, Value, kernel
from hibana.spikes.simd.lists import (
    SLACK,
    WORD,
    append_bits,
    bits_at,
    first_bits,
    put_bits,
    transpose_bits,
    words_of,
)
from hibana.spikes.simd.rows import Row, dots, in_eights, pad_list

__all__ = ["PaddedGradient", "PixelBits", "Sizes", "input_gradient", "windows"]


TILE = 128
"""Pixels of a tile of the input gradient; a multiple of 64."""


class Sizes(Group):
    """Sizes of the images, of the convolution, and of the output, in pixels."""

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


class PixelBits:
    """The bits of one row of pixels of an image, which :meth:`load_row` copies to the buffer `pixels`.

    `bits` are rows of pixels; the buffer has room for one word more than a row.
    """

    def __init__(self, code: Code, sizes: Sizes, bits: Pointer, pixels: Pointer) -> None:
        self.code, self.sizes, self.bits, self.pixels = code, sizes, bits, pixels
        self.row_words = words_of(sizes.width * sizes.channels)
        self.pixel_words = words_of(sizes.channels)
        """Words of the channels of one pixel."""
        pixels[self.row_words] = 0  # :func:`bits_at` reads one word beyond the row

    def load_row(self, number: Value) -> None:
        """Copies row `number` of `bits` to the buffer."""
        self.pixels.copy(self.bits + self.row_words * number, self.row_words)

    def channel_bits(self, x: Value, word: Value) -> Value:
        """The bits of up to 64 channels of pixel `x`, from channel 64 * `word` on."""
        channels = self.sizes.channels
        mask = first_bits(self.code, (channels - word * WORD).smaller(WORD))
        return bits_at(self.pixels, x * channels + word * WORD) & mask


class PaddedGradient(NamedTuple):
    """The output gradient of a convolution, ``[images, height, width, outputs]``, with zeros around it."""

    code: Code
    row: Row
    gradient: Pointer
    outputs: Value
    sizes: Sizes

    def copy(self, target: Pointer, panel: Value, image: Value, y: Value, begin: Value, count: Value) -> None:
        """Copies one panel of `count` pixels of row `y` of an image, from pixel `begin` on.

        `target` is ``[count][panel]``.
        """
        row, sizes = self.row, self.sizes
        inside = (y >= 0) & (y < sizes.out_height)
        first = inside.select((0 - begin).larger(0).smaller(count), count)
        stop = (sizes.out_width - begin).smaller(count).larger(first)
        target.clear(first * row.floats)
        (target + stop * row.floats).clear((count - stop) * row.floats)
        pixel = (image * sizes.out_height + y) * sizes.out_width + begin + first
        source, block = self.gradient + pixel * self.outputs, target + first * row.floats
        row.read_panel(self.code, panel, source, self.outputs, stop - first, block)


@kernel
def windows(code: Code, begin: Value, end: Value, *, bits: Longs, target: Longs, sizes: Sizes) -> None:
    """Im2col of bits: for each output pixel, the bits under its window, ``[kernel height][kernel
    width][channels]``.

    One work item is a row of output pixels.
    """
    channels, out_width = sizes.channels, sizes.out_width
    step = sizes.stride_across * channels
    words = words_of(sizes.width * channels)
    pitch = words_of((sizes.width + sizes.padding_across * 2) * channels) + 2
    window_row_bits = sizes.kernel_width * channels
    window = words_of(sizes.kernel_height * window_row_bits)
    joined = sizes.dilation_across.equals(1)
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
        pieces, piece = joined.select(1, sizes.kernel_width), joined.select(window_row_bits, channels)
        remainder = piece % WORD
        full = piece - remainder
        n = code.variable(0)
        with code.loop(0, out_width) as x:
            partial, filled = code.variable(0), code.variable(0)  # a word, and its number of bits
            with code.loop(0, sizes.kernel_height) as i, code.loop(0, pieces) as j:
                line = rows + pitch * i
                source = x * step + j * sizes.dilation_across * channels
                shift = filled.value
                with code.loop(0, full, WORD) as offset:
                    word = bits_at(line + offset // WORD, source)
                    out[n.value] = partial.value | (word << shift)
                    n.value += 1
                    partial.value = (word >> 1) >> (WORD - 1 - shift)
                with code.when(remainder > 0):
                    word = bits_at(line + full // WORD, source) & first_bits(code, remainder)
                    partial.value |= word << shift
                    filled.value += remainder
                    with code.when(filled.value >= WORD):
                        out[n.value] = partial.value
                        n.value += 1
                        partial.value = (word >> 1) >> (WORD - 1 - shift)
                        filled.value -= WORD
            with code.when(filled.value > 0):
                out[n.value] = partial.value
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
    tile_height: Value,
    tile_width: Value,
    row: Row,
) -> None:
    """Writes the input gradient at stride 1: computed where `bits` are set, zero elsewhere.

    One work item is a tile of at most TILE pixels: `tile_height` x `tile_width` pixels of `per_tile` images;
    `per_tile` is above 1 only if a tile covers an image. First, the kernel lists for each channel the pixels
    whose bit is set. Then, for each panel of outputs, it copies the output gradient around the tile to a
    buffer, padded with zeros, and multiplies each channel's weights with eight listed pixels at a time.

    The table holds, for each panel of outputs, ``[channels][kernel height][kernel width][panel]``. If the
    dilation down is not 1, `tile_height` must be 1.
    """
    channels, width = sizes.channels, sizes.width
    blocks = words_of(channels)
    panels = row.panels(outputs)
    taps = sizes.kernel_height * sizes.kernel_width
    panel_floats = words_of(channels * taps) * (WORD * row.floats)
    reach_down, reach_across = sizes.kernel_height - 1, (sizes.kernel_width - 1) * sizes.dilation_across
    pitch = (tile_width + reach_across) * row.floats
    tall = tile_height + reach_down
    tiles_down, tiles_across = (
        (sizes.height + tile_height - 1) // tile_height,
        (width + tile_width - 1) // tile_width,
    )
    line_floats = width * channels
    image_floats = sizes.height * line_floats
    padded = PaddedGradient(code, row, gradient, outputs, sizes)
    with code.scratch(
        (Floats, per_tile * tall * pitch),
        (Longs, blocks * TILE),
        (Longs, words_of(width * channels) + 1),
        (Longs, TILE),
        (Longs, TILE),
        (Longs, channels + 1),
        (Shorts, channels * TILE + SLACK),
    ) as (tile_gradient, masks, pixels, gradient_offsets, out_offsets, begins, index):
        pixel_bits = PixelBits(code, sizes, bits, pixels)
        with (
            code.loop(0, per_tile) as k,
            code.loop(0, tile_height) as down,
            code.loop(0, tile_width) as across,
        ):
            pixel = (k * tile_height + down) * tile_width + across
            gradient_offsets[pixel] = (k * tall + down) * pitch + across * row.floats
            out_offsets[pixel] = k * image_floats + down * line_floats + across * channels
        with code.loop(begin, end) as item:
            image, tile = item // (tiles_down * tiles_across) * per_tile, item % (tiles_down * tiles_across)
            count = (images - image).smaller(per_tile)
            top, left = tile // tiles_across * tile_height, tile % tiles_across * tile_width
            height, across = (sizes.height - top).smaller(tile_height), (width - left).smaller(tile_width)
            out = target + (image * image_floats + top * line_floats + left * channels)
            masks.clear(blocks * TILE)
            with code.loop(0, count) as k, code.loop(0, height) as y:
                (out + (k * image_floats + y * line_floats)).clear(across * channels)
                pixel_bits.load_row((image + k) * sizes.height + top + y)
                with code.loop(0, blocks) as block, code.loop(0, across) as x:
                    pixel = (k * tile_height + y) * tile_width + x
                    masks[block * TILE + pixel] = pixel_bits.channel_bits(left + x, block)
            with code.loop(0, blocks * (TILE // WORD)) as square:
                transpose_bits(code, masks + square * WORD)
            n = code.variable(0)
            with code.loop(0, channels) as channel:
                begins[channel], first = n.value, n.value
                channel_mask = masks + (channel // WORD * TILE + channel % WORD)
                for part in range(0, TILE, WORD):
                    n.value = append_bits(code, row, channel_mask[part], code.constant(part), index, n.value)
                pad_list(code, index, first, n)
            begins[channels] = n.value
            upper = top + sizes.padding_down - reach_down * sizes.dilation_down
            start = left + sizes.padding_across - reach_across
            with code.loop(0, panels) as panel:
                with code.loop(0, count) as k, code.loop(0, height + reach_down) as y:
                    to, line = tile_gradient + (k * tall + y) * pitch, upper + y * sizes.dilation_down
                    padded.copy(to, panel, image + k, line, start, across + reach_across)
                tables = table + panel * panel_floats
                with code.loop(0, channels) as channel:
                    weights = tables + channel * taps * row.floats
                    for pixel_numbers in in_eights(code, index, begins[channel], begins[channel + 1]):
                        gradients = [tile_gradient + gradient_offsets[k] for k in pixel_numbers]
                        targets = [out + (out_offsets[k] + channel) for k in pixel_numbers]
                        _add_products(code, row, targets, gradients, weights, pitch, sizes)


def _add_products(
    code: Code,
    row: Row,
    targets: Sequence[Pointer],
    gradients: Sequence[Pointer],
    weights: Pointer,
    pitch: Value,
    sizes: Sizes,
) -> None:
    """Adds one panel's products to one channel's input gradient, at the addresses `targets`.

    `gradients` are, for each target, the address in the padded output gradient of the first pixel that the
    target's pixel contributes to; `weights` are those of the channel.
    """

    def offsets() -> Iterator[tuple[Value, Value]]:
        """The offset of each row of weights, and of the row of the gradient to multiply it with."""
        with code.loop(0, sizes.kernel_height) as i, code.loop(0, sizes.kernel_width) as j:
            across = (sizes.kernel_width - 1 - j) * sizes.dilation_across * row.floats
            yield (i * sizes.kernel_width + j) * row.floats, (sizes.kernel_height - 1 - i) * pitch + across

    totals = dots(code, row, weights, gradients, offsets())
    # all loads first: padding repeats the last pixel, which must get one product only
    results = [at.load() + total for at, total in zip(targets, totals, strict=True)]
    for at, value in zip(targets, results, strict=True):
        at.store(value)
