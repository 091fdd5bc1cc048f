"""A convolution of spikes on the processor's unit for matrices, in tiles of bfloat16.

A spike is exact in bfloat16, which has 8 digits of the 24 of a float32, and so is a whole number up to 256; a
weight is the sum of three such numbers. So a product is three, each exact, and sums are float32's. Images lie
with zeros around them and their rows one after the other, so that a tile of pixels that follow one another is
read at any place under a window, and no window is gathered.
"""

from collections.abc import Sequence

from hibana.events.convolution.kernels import Sizes
from hibana.events.lanes.lists import bits_from, first_bits, words_of
from hibana.events.lanes.rows import LANES, transposed
from hibana.native import (
    FLOAT,
    INT,
    LONG,
    SHORT,
    Code,
    Floats,
    Ints,
    Longs,
    Pointer,
    Shorts,
    Value,
    Variable,
    kernel,
)
from hibana.native.amx import SIDE, Tiles, tiles

__all__ = ["BLOCK", "BLOCKS", "PARTS", "TILE", "forward", "pack"]

PARTS = 3
"""Numbers of bfloat16 that a weight is the sum of."""
BLOCK = 32
"""Channels of a pixel that one tile holds."""
BLOCKS = 3
"""Tiles of pixels that meet the same weights; as many sums, and two of weights, fill the eight."""
TILE = SIDE * BLOCK
"""Numbers of bfloat16 in a tile."""
_ONE = 0x3F80
"""1 in bfloat16."""
_UPPER = -(1 << 16)
"""The bits of a float32 that bfloat16 has."""


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
) -> None:
    """Weights ``[outputs][taps][channels]`` as ``[tiles][taps][blocks][parts][16][16][2]``, zeros between.

    One piece of work is one tap of one tile of outputs.
    """
    blocks = (channels + (BLOCK - 1)) // BLOCK
    square = code.array(Floats, BLOCK * LANES)
    with code.loop(begin, end) as piece, code.loop(0, blocks) as block:
        first, tap = piece // taps * SIDE, piece % taps
        at = source + (first * taps + tap) * channels + block * BLOCK
        count, wide = (outputs - first).smaller(SIDE), (channels - block * BLOCK).smaller(BLOCK)
        with code.when((count < SIDE) | (wide < BLOCK)):
            square.clear(BLOCK * LANES)
        transposed(code, square, code.constant(LANES), at, taps * channels, count, wide)
        tile = (target + (piece * blocks + block) * (PARTS * TILE)).of(Ints)
        with code.loop(0, SIDE) as pair:
            low, high = (_parts((square + (pair * 2 + k) * LANES).load(LANES)) for k in range(2))
            for part, (one, other) in enumerate(zip(low, high, strict=True)):
                (tile + pair * LANES + part * (TILE // 2)).store((one >> 16) | other)


def _parts(number: Value) -> list[Value]:
    """The bits of numbers of bfloat16 whose sum `number` is: its first digits, and what is left each time.

    Which is exact; of infinity nothing is left.
    """
    found = []
    for _ in range(PARTS):
        bits = number.integer() & _UPPER
        found.append(bits)
        number = abs(number).equals(float("inf")).select(0.0, number - bits.number())
    return found


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
    stride_down: Value,
    stride_across: Value,
    images: Value,
    outputs: Value,
    deep: Value,
    tall: Value,
    pitch: Value,
    together: Value,
    planes: int,
) -> None:
    """The sums for `planes` of bits and what :func:`pack` made of the weights, channels last.

    One piece of work is `deep` rows of the output of `together` images. The pixels that they meet, as numbers
    of bfloat16, lie in `tall` rows of `pitch`, each pixel of one image beside those of the others, and those
    of each remainder by the stride apart: so what lies under one place of the windows are pixels that follow
    one another, and `taps` says where they begin, in numbers. Pixels between the rows of the output are
    computed too, and not written.
    """
    blocks = (sizes.channels + (BLOCK - 1)) // BLOCK
    pixel = blocks * BLOCK
    words = words_of(sizes.width * sizes.channels)
    row_numbers = pitch * together * pixel
    remainder = tall * row_numbers
    pixels = stride_down * stride_across * remainder
    beyond = ((sizes.kernel_width - 1) * sizes.dilation_across * together + BLOCKS * SIDE) * pixel
    bands = (sizes.out_height + deep - 1) // deep
    taps_tiles = sizes.kernel_height * sizes.kernel_width * blocks * (PARTS * TILE)
    with (
        tiles(code) as unit,
        code.scratch((Shorts, pixels + beyond), (Longs, (words + 1) * planes)) as (near, rows_of_bits),
    ):
        sums = code.array(Floats, BLOCKS * SIDE * LANES)
        near.clear(pixels + beyond)
        lines = [rows_of_bits + (words + 1) * plane for plane in range(planes)]
        for each in lines:
            each[words] = 0
        with code.loop(begin, end) as piece:
            image, top = piece // bands * together, piece % bands * deep
            count = (images - image).smaller(together)
            height = (sizes.out_height - top).smaller(deep)
            with code.loop(0, stride_down) as left, code.loop(0, tall) as row:
                y = (top + row) * stride_down + left - sizes.padding_down
                to = near + left * stride_across * remainder + row * row_numbers
                inside = (y >= 0) & (y < sizes.height)
                with code.when(~inside), code.loop(0, stride_across) as other:
                    (to + other * remainder).clear(row_numbers)
                with code.when(inside), code.loop(0, count) as i:
                    for plane, each in enumerate(lines):
                        each.copy(bits + ((images * plane + image + i) * sizes.height + y) * words, words)
                    with code.loop(0, sizes.width) as x:
                        place = x + sizes.padding_across
                        out = to + place % stride_across * remainder
                        out += (place // stride_across * together + i) * pixel
                        _put(code, out, lines, x * sizes.channels, sizes.channels)
            out = target + (image * sizes.out_height + top) * sizes.out_width * outputs
            rows = (height * pitch * together + (SIDE - 1)) // SIDE
            with code.loop(0, outputs, SIDE) as output:
                there = code.first((outputs - output).smaller(SIDE), LANES)
                start = code.variable(0.0, FLOAT.of(LANES))
                with code.when(bias.given()):
                    start.value = (bias + output).load(LANES, there)
                weights = table + output // SIDE * taps_tiles

                def some(blocks: int, tile: Value) -> None:
                    _multiplied(code, unit, blocks, near + tile * (SIDE * pixel), weights, taps, sums, sizes)
                    begun = tile * SIDE // together
                    i, x = code.variable(tile * SIDE % together), code.variable(begun % pitch)
                    y = code.variable(begun // pitch)
                    with code.loop(0, blocks * SIDE) as k:
                        with code.when((i.value < count) & (x.value < sizes.out_width) & (y.value < height)):
                            line = i.value * sizes.out_height + y.value
                            to = out + (line * sizes.out_width + x.value) * outputs + output
                            to.store((sums + k * LANES).load(LANES) + start.value, there)
                        _count_on((i, x, y), (together, pitch))

                whole = rows - rows % BLOCKS
                with code.loop(0, whole, BLOCKS) as tile:
                    some(BLOCKS, tile)
                for left_over in range(1, BLOCKS):
                    with code.when((rows - whole).equals(left_over)):
                        some(left_over, whole)


def _count_on(digits: Sequence[Variable], sizes: Sequence[Value]) -> None:
    """Adds 1 to a number of which all `digits` but the last have these sizes."""
    more: Value | int = 1
    for digit, size in zip(digits, sizes, strict=False):
        following = digit.value + more
        ended = following.equals(size)
        digit.value = ended.select(0, following)
        more = ended.select(following.constant(LONG, 1), 0)
    digits[-1].value += more


def _put(code: Code, target: Pointer, planes: Sequence[Pointer], position: Value, channels: Value) -> None:
    """The channels of a pixel whose bits begin at a `position` of each of the `planes`."""
    with code.loop(0, channels, BLOCK) as first:
        there = first_bits(code, (channels - first).smaller(BLOCK))
        found = [(bits_from(plane, position + first) & there).mask(BLOCK) for plane in planes]
        (target + first).store(_whole(code, found))


def _whole(code: Code, planes: Sequence[Value]) -> Value:
    """The numbers that the bits of the `planes` are, in bfloat16."""
    if len(planes) == 1:
        return planes[0].select(code.constant(_ONE, SHORT.of(BLOCK)), 0)
    number = planes[0].select(code.constant(1, INT.of(BLOCK)), 0)
    for k, plane in enumerate(planes[1:], 1):
        number |= plane.select(code.constant(1 << k, INT.of(BLOCK)), 0)
    return (number.real(FLOAT).integer() >> 16).to(SHORT)


def _multiplied(
    code: Code,
    unit: Tiles,
    count: int,
    pixels: Pointer,
    weights: Pointer,
    taps: Pointer,
    sums: Pointer,
    sizes: Sizes,
) -> None:
    """The sums of `count` tiles of `pixels` under all places of their windows, ``[count * 16][16]``."""
    blocks = (sizes.channels + (BLOCK - 1)) // BLOCK
    pitch = blocks * (BLOCK * SHORT.size)
    tile = code.variable(weights.address())
    for total in range(count):
        unit.clear(total)
    with code.loop(0, sizes.kernel_height * sizes.kernel_width) as tap:
        at = pixels + taps[tap]
        with code.loop(0, blocks) as block:
            for k in range(count):
                unit.load(BLOCKS + k, at + block * BLOCK + blocks * (BLOCK * SIDE * k), pitch)
            for part in range(PARTS):
                right = 2 * BLOCKS + part % 2
                unit.load(right, type(weights).at(tile.value) + part * TILE, BLOCK * SHORT.size)
                for k in range(count):
                    unit.multiply(k, BLOCKS + k, right)
            tile.value += PARTS * TILE * SHORT.size
    for total in range(count):
        unit.store(total, sums + total * SIDE * LANES, LANES * FLOAT.size)
