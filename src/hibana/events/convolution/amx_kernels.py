"""A convolution of spikes on the processor's unit for matrices, in tiles of bfloat16.

A spike is exact in bfloat16, which has 8 digits of the 24 of a float32, and so is a whole number up to 256; a
weight is the sum of three such numbers. So a product is three, each exact, and sums are float32's. Images lie
with zeros around them and their rows one after the other, so that a tile of pixels that follow one another is
read at any place under a window, and no window is gathered.
"""

from collections.abc import Iterator, Sequence

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
    channels_last: Value,
) -> None:
    """Weights as ``[tiles][taps][blocks][parts][16][16][2]``, zeros between.

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
            tile = target + ((piece // blocks * taps + tap) * blocks + block) * (PARTS * TILE)
            with code.loop(0, SIDE) as pair:
                row = rows + (pair * 2 * next_channel + tap * next_tap) * LANES
                low, high = (_parts(each.load(LANES)) for each in (row, row + next_channel * LANES))
                for part, (one, other) in enumerate(zip(low, high, strict=True)):
                    (tile.of(Ints) + pair * LANES + part * (TILE // 2)).store((one >> 16) | other)


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
                    with code.loop(0, stride_across) as other:
                        first = (other + stride_across - sizes.padding_across % stride_across) % stride_across
                        before = (first + sizes.padding_across) // stride_across * together + i
                        at = code.variable((to + other * remainder + before * pixel).address())
                        with code.loop(first, sizes.width, stride_across) as x:
                            _put(code, type(near).at(at.value), lines, x * sizes.channels, sizes.channels)
                            at.value += together * pixel * SHORT.size
            out = target + (image * sizes.out_height + top) * sizes.out_width * outputs
            rows = (height * pitch * together + (SIDE - 1)) // SIDE
            places = _Places(sizes, outputs, pitch, together, count, height)
            with code.loop(0, outputs, SIDE) as output:
                there = code.first((outputs - output).smaller(SIDE), LANES)
                start = code.variable(0.0, FLOAT.of(LANES))
                with code.when(bias.given()):
                    start.value = (bias + output).load(LANES, there)
                weights = table + output // SIDE * taps_tiles

                def some(blocks: int, tile: Value) -> None:
                    _multiplied(code, unit, blocks, near + tile * (SIDE * pixel), weights, taps, sums, sizes)
                    for sums_from, to, number, step in places.runs(code, tile * SIDE, blocks * SIDE):
                        with code.loop(0, number) as k:
                            values = (sums + (sums_from + k) * LANES).load(LANES)
                            (out + output + to + k * step).store(values + start.value, there)

                whole = rows - rows % BLOCKS
                with code.loop(0, whole, BLOCKS) as tile:
                    some(BLOCKS, tile)
                for left_over in range(1, BLOCKS):
                    with code.when((rows - whole).equals(left_over)):
                        some(left_over, whole)


class _Places:
    """Where the sums of a piece of work are written: of pixels that follow one another, in runs.

    A run is of pixels of one row; of one pixel of several images, where these lie side by side.
    """

    def __init__(
        self, sizes: Sizes, outputs: Value, pitch: Value, together: Value, images: Value, height: Value
    ) -> None:
        alone = together.equals(1)
        pixel, row = outputs, sizes.out_width * outputs
        self.size, self.wanted = alone.select(pitch, together), alone.select(sizes.out_width, images)
        self.step = alone.select(pixel, row * sizes.out_height)
        self.runs_of_row, self.wanted_of_row = alone.select(1, pitch), alone.select(1, sizes.out_width)
        self.pixel, self.row, self.height = pixel, row, height

    def runs(self, code: Code, first: Value, count: int) -> Iterator[tuple[Value, Value, Value, Value]]:
        """Of `count` pixels from the `first` on, what there is to write, once for all runs.

        Gives after which of the pixels a run begins, where its first is written, how many there are, and how
        far apart they are written.
        """
        begun = first // self.size
        done, skipped = code.variable(0), code.variable(first % self.size)
        x, y = code.variable(begun % self.runs_of_row), code.variable(begun // self.runs_of_row)
        with code.repeat() as again:
            length = (self.size - skipped.value).smaller(count - done.value)
            inside = (x.value < self.wanted_of_row) & (y.value < self.height)
            number = inside.select((self.wanted - skipped.value).smaller(length), 0)
            to = y.value * self.row + x.value * self.pixel + skipped.value * self.step
            yield done.value, to, number, self.step
            done.value += length
            skipped.value = done.value.constant(LONG, 0)
            following = x.value + 1
            ended = following.equals(self.runs_of_row)
            x.value = ended.select(0, following)
            y.value += ended.to(LONG)
            again(done.value < count)


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
