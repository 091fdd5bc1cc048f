"""A convolution of spikes on the processor's unit for matrices, in tiles of bfloat16.

A spike is exact in bfloat16, which has 8 digits of the 24 of a float32, and so is a whole number up to 256; a
weight is the sum of three such numbers. So a product is three, each exact, and sums are float32's. Images lie
with zeros around them and their rows one after the other, so that a tile of pixels that follow one another is
read at any place under a window, and no window is gathered.
"""

from collections.abc import Sequence

from hibana.events.convolution.amx.tiles import (
    BLOCK,
    BLOCKS,
    PARTS,
    TILE,
    Near,
    Places,
    at_a_time,
    in_parts,
    multiplied,
)
from hibana.events.convolution.kernels import Sizes
from hibana.events.lanes.lists import bits_from, first_bits, words_of
from hibana.events.lanes.rows import LANES, transposed
from hibana.native import (
    FLOAT,
    INT,
    SHORT,
    Code,
    Floats,
    Ints,
    Longs,
    Pointer,
    Shorts,
    Value,
    kernel,
)
from hibana.native.amx import SIDE, tiles

__all__ = ["forward", "pack", "whole_numbers"]

_ONE = 0x3F80
"""1 in bfloat16."""


@kernel
def pack(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    target: Shorts,
    outputs: Value,
    channels: Value,
    taps: Value,
    channels_last: Value,
) -> None:
    """Weights as ``[tiles][blocks][taps][parts][16][16][2]``, zeros between.

    They are ``[outputs][channels][taps]``, or ``[outputs][taps][channels]`` if `channels_last`. One piece of
    work is one block of channels of one tile of outputs.
    """
    blocks = (channels + (BLOCK - 1)) // BLOCK
    last = channels_last > 0
    next_channel, next_tap = last.select(1, taps), last.select(code.constant(BLOCK), 1)
    with code.scratch((Floats, taps * (BLOCK * LANES))) as (rows,), code.loop(begin, end) as piece:
        first, block = piece // blocks * SIDE, piece % blocks
        count, wide = (outputs - first).smaller(SIDE), (channels - block * BLOCK).smaller(BLOCK)
        with code.when((count < SIDE) | (wide < BLOCK)):
            rows.clear(taps * (BLOCK * LANES))
        whole, lanes = taps * channels, code.constant(LANES)
        at = source + first * whole + block * BLOCK * last.select(code.constant(1), taps)
        with code.when(last), code.loop(0, taps) as tap:
            transposed(code, rows + tap * (BLOCK * LANES), lanes, at + tap * channels, whole, count, wide)
        with code.when(~last):
            transposed(code, rows, lanes, at, whole, count, wide * taps)
        with code.loop(0, taps) as tap:
            tile = target + (piece * taps + tap) * (PARTS * TILE)
            with code.loop(0, SIDE) as pair:
                row = rows + (pair * 2 * next_channel + tap * next_tap) * LANES
                low, high = (in_parts(each.load(LANES)) for each in (row, row + next_channel * LANES))
                for part, (one, other) in enumerate(zip(low, high, strict=True)):
                    (tile.of(Ints) + pair * LANES + part * (TILE // 2)).store((one >> 16) | other)


@kernel
def forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    table: Shorts,
    bias: Floats,
    taps: Longs,
    target: Floats,
    sizes: Sizes,
    images: Value,
    outputs: Value,
    deep: Value,
    tall: Value,
    pitch: Value,
    across: Value,
    together: Value,
    planes: int,
) -> None:
    """The sums for `planes` of bits and what :func:`pack` made of the weights, channels last.

    One piece of work is `deep` rows of the output of `together` images. What they meet lies as :class:`Near`
    says, as numbers of bfloat16, one block of channels after the other; `taps` says at which pixel what is
    under each place of the windows begins. So many pixels `across` are gone through, some of which may lie
    between the rows of the output: these are computed too, and not written.
    """
    lying = Near(sizes, tall, pitch, together)
    blocks = (sizes.channels + (BLOCK - 1)) // BLOCK
    words = words_of(sizes.width * sizes.channels)
    beyond = (sizes.kernel_width - 1) * sizes.dilation_across * together + BLOCKS * SIDE
    plane = (sizes.stride_down * sizes.stride_across * lying.remainder + beyond) * BLOCK
    bands = (sizes.out_height + deep - 1) // deep
    windows = sizes.kernel_height * sizes.kernel_width
    taps_tiles = windows * blocks * (PARTS * TILE)
    with (
        tiles(code) as unit,
        code.scratch((Shorts, plane * blocks), (Longs, (words + 1) * planes)) as (near, rows_of_bits),
    ):
        sums = code.array(Floats, BLOCKS * SIDE * LANES)
        near.clear(plane * blocks)
        lines = [rows_of_bits + (words + 1) * k for k in range(planes)]
        for each in lines:
            each[words] = 0
        with code.loop(begin, end) as piece:
            image, top = piece // bands * together, piece % bands * deep
            count = (images - image).smaller(together)
            height = (sizes.out_height - top).smaller(deep)

            def brought(y: Value, to: Value) -> None:
                with code.loop(0, count) as i:
                    for k, each in enumerate(lines):
                        each.copy(bits + ((images * k + image + i) * sizes.height + y) * words, words)
                    row = near + (to + i) * BLOCK

                    def put(x: Value, further: Value) -> None:
                        _put(code, row + further * BLOCK, plane, lines, x * sizes.channels, sizes.channels)

                    lying.pixels(code, put)

            def nothing(to: Value) -> None:
                with code.loop(0, blocks) as block:
                    (near + block * plane + to * BLOCK).clear(lying.line * BLOCK)

            lying.rows(code, top, brought, nothing)
            out = target + (image * sizes.out_height + top) * sizes.out_width * outputs
            row = sizes.out_width * outputs
            steps = row * sizes.out_height, row, outputs
            places = Places(pitch, across, together, count, (height, sizes.out_width), steps)
            with code.loop(0, outputs, SIDE) as output:
                weights = table + output // SIDE * taps_tiles

                def some(number: int, tile: Value) -> None:
                    pixels = [near + places.near(tile + k) * BLOCK for k in range(number)]
                    multiplied(code, unit, pixels, weights, taps, windows, windows, blocks, plane, sums)
                    places.put(code, unit, number, tile, sums, out, output, outputs, bias)

                at_a_time(code, places.tiles, BLOCKS, some)


def _put(
    code: Code, target: Pointer, apart: Value, planes: Sequence[Pointer], position: Value, channels: Value
) -> None:
    """The channels of a pixel whose bits begin at a `position` of each of `planes`; blocks lie `apart`."""
    with code.loop(0, channels, BLOCK) as first:
        there = first_bits(code, (channels - first).smaller(BLOCK))
        found = [(bits_from(plane, position + first) & there).mask(BLOCK) for plane in planes]
        (target + first // BLOCK * apart).store(whole_numbers(code, found))


def whole_numbers(code: Code, planes: Sequence[Value]) -> Value:
    """The numbers that the bits of the `planes` are, in bfloat16."""
    if len(planes) == 1:
        return planes[0].select(code.constant(_ONE, SHORT.of(BLOCK)), 0)
    number = planes[0].select(code.constant(1, INT.of(BLOCK)), 0)
    for k, plane in enumerate(planes[1:], 1):
        number |= plane.select(code.constant(1 << k, INT.of(BLOCK)), 0)
    return (number.real(FLOAT).integer() >> 16).to(SHORT)
