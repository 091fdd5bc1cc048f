"""What kernels of the unit for matrices share: numbers in parts, tiles, and where sums are written."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hibana.events.convolution.kernels import Sizes
from hibana.events.lanes.rows import LANES
from hibana.native import BYTE, FLOAT, LONG, SHORT, Code, Pointer, Value
from hibana.native.amx import SIDE, Tiles

__all__ = [
    "BLOCK",
    "BLOCKS",
    "PARTS",
    "TILE",
    "Near",
    "Places",
    "any_strange",
    "in_parts",
    "multiplied",
    "store_now_and_then",
    "strange_numbers",
    "tiled",
]

PARTS = 3
"""Numbers of bfloat16 that a float32 is the sum of."""
BLOCK = 32
"""Channels of a pixel that one tile holds."""
BLOCKS = 3
"""Tiles of pixels that meet the same weights; as many sums, and two of weights, fill the eight."""
TILE = SIDE * BLOCK
"""Numbers of bfloat16 in a tile."""
_UPPER = -(1 << 16)
"""The bits of a float32 that bfloat16 has."""
_HALF = 1 << 15
"""Half of the last of them."""
_SIGN = (1 << 31) - 1
"""All bits of a float32 but that of its sign."""
_STRANGE = 0x7F7F8000 - 1
"""What is above it is rounded to no finite number of bfloat16."""


def in_parts(number: Value, *, rounded: bool = False) -> list[Value]:
    """The bits of numbers of bfloat16 whose sum `number` is: its first digits, and what is left each time.

    Which is exact; of infinity nothing is left. If `rounded`, they are the nearest each time, and of what is
    left one half is below zero; then infinity has no parts.
    """
    found = []
    for _ in range(PARTS):
        bits = number.integer()
        bits = ((bits + _HALF) if rounded else bits) & _UPPER
        found.append(bits)
        left = number - bits.number()
        number = left if rounded else abs(number).equals(float("inf")).select(0.0, left)
    return found


def strange_numbers(number: Value) -> Value:
    """Not zero where `number` has no parts that are `rounded`: it is infinite, or none, or about as large."""
    bits = number.integer() & _SIGN
    return (bits > _STRANGE).select(bits, 0)


def any_strange(code: Code, found: Value) -> Value:
    """Whether any of what :func:`strange_numbers` `found` is not zero, as a byte."""
    return found.differs(0).word().differs(0).select(code.constant(1, BYTE), 0)


class Near(NamedTuple):
    """How the pixels lie that some rows of the output meet.

    They are `tall` rows of `pitch`, each pixel of one image beside those of the others that are done
    `together`, and those of each remainder by the stride apart: so what lies under one place of the windows
    are pixels that follow one another.
    """

    stride_down: Value
    stride_across: Value
    tall: Value
    pitch: Value
    together: Value

    @property
    def line(self) -> Value:
        """Pixels of a row."""
        return self.pitch * self.together

    @property
    def remainder(self) -> Value:
        """Pixels of one remainder."""
        return self.tall * self.line

    def rows(
        self,
        code: Code,
        sizes: Sizes,
        top: Value,
        inside: Callable[[Value, Value], None],
        outside: Callable[[Value], None],
    ) -> None:
        """Goes through the rows that are met of an image from row `top` of the output on.

        Gives `inside` which row it is and at which pixel it begins, and `outside` the latter of what is none.
        """
        with code.loop(0, self.stride_down) as left, code.loop(0, self.tall) as down:
            y = (top + down) * self.stride_down + left - sizes.padding_down
            to = left * self.stride_across * self.remainder + down * self.line
            there = (y >= 0) & (y < sizes.height)
            with code.when(~there), code.loop(0, self.stride_across) as other:
                outside(to + other * self.remainder)
            with code.when(there):
                inside(y, to)

    def pixels(self, code: Code, sizes: Sizes, pixel: Callable[[Value, Value], None]) -> None:
        """Goes through the pixels of a row: which it is, and how far from where the row begins it lies."""
        across = self.stride_across
        with code.loop(0, across) as other:
            first = (other + across - sizes.padding_across % across) % across
            before = (first + sizes.padding_across) // across
            at = code.variable(other * self.remainder + before * self.together)
            with code.loop(first, sizes.width, across) as x:
                pixel(x, at.value)
                at.value += self.together


def tiled(code: Code, rows: Value, some: Callable[[int, Value], None]) -> None:
    """Has `some` do so many `rows` of 16 pixels: how many at a time, and from which on."""
    whole = rows - rows % BLOCKS
    with code.loop(0, whole, BLOCKS) as tile:
        some(BLOCKS, tile)
    for left_over in range(1, BLOCKS):
        with code.when((rows - whole).equals(left_over)):
            some(left_over, whole)


def multiplied(
    code: Code,
    unit: Tiles,
    count: int,
    pixels: Pointer,
    weights: Pointer,
    taps: Pointer,
    number: Value,
    windows: Value,
    blocks: Value,
    plane: Value,
    sums: Pointer,
    apart: Sequence[Value] = (),
) -> None:
    """The sums of `count` tiles of `pixels` under a `number` of `taps` of windows, ``[count * 16][16]``.

    Pixels are of `blocks` of channels, each a `plane` of so many numbers; the weights of one lie together,
    those of all `windows`. Pixels are exact, and each is multiplied by all parts of a weight; or in parts
    themselves, of which the second and the third lie so many numbers `apart` from the first. Then three of
    nine products are left out, which are 2^-23 of the whole together, of either sign, at most.
    """
    pitch = BLOCK * SHORT.size
    for total in range(count):
        unit.clear(total)
    with code.loop(0, blocks) as block:
        tile = code.variable((weights + block * windows * (PARTS * TILE)).address())
        with code.loop(0, number) as tap:
            at = pixels + block * plane + taps[tap] * BLOCK
            right = 1
            for part, here in enumerate([at, *(at + numbers for numbers in apart)]):
                for k in range(count):
                    unit.load(BLOCKS + k, here + TILE * k, pitch)
                for other in range(PARTS - part):
                    right ^= 1
                    held = 2 * BLOCKS + right
                    unit.load(held, type(weights).at(tile.value) + other * TILE, pitch)
                    for k in range(count):
                        unit.multiply(k, BLOCKS + k, held)
            store_now_and_then(unit, 2 * BLOCKS + right, sums)
            tile.value += PARTS * TILE * SHORT.size
    for total in range(count):
        unit.store(total, sums + total * SIDE * LANES, LANES * FLOAT.size)


def store_now_and_then(unit: Tiles, tile: int, sums: Pointer) -> None:
    """Stores any `tile` where the `sums` are to be written later.

    Of products that take more than some 2,000 cycles the sums take a thousand more to store, unless another
    tile is stored between them. Seen on an Intel Xeon with AMX; no manual says why:
    14 times nine products do not, 16 times do, whatever is loaded, and any store ends it.
    """
    unit.store(tile, sums, LANES * FLOAT.size)


class Places:
    """Where the sums of a piece of work are written: of pixels that follow one another, in runs.

    A run is of pixels of one row; of one pixel of several images, where these lie side by side.
    """

    def __init__(
        self,
        pitch: Value,
        together: Value,
        images: Value,
        wanted: tuple[Value, Value],
        steps: tuple[Value, Value, Value],
    ) -> None:
        """Rows of `pitch` pixels of `together` images, of which so many `images` are there.

        Of the pixels those are `wanted`, down and across; `steps` are how many numbers lie between those of
        one image and the next, one row and the next, one pixel and the next.
        """
        alone = together.equals(1)
        image, self.row, self.pixel = steps
        self.height, width = wanted
        self.size, self.wanted = alone.select(pitch, together), alone.select(width, images)
        self.step = alone.select(self.pixel, image)
        self.runs_of_row, self.wanted_of_row = alone.select(1, pitch), alone.select(1, width)

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
