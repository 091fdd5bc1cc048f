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
    "at_a_time",
    "in_parts",
    "multiplied",
    "store_now_and_then",
    "strange_numbers",
]

PARTS = 3
"""Numbers of bfloat16 that a float32 is the sum of."""
BLOCK = 32
"""Channels of a pixel that one tile holds."""
BLOCKS = 4
"""Tiles of pixels that meet the same weights: so many sums, one of pixels and a weight's parts are eight."""
_PIXELS, _WEIGHTS = BLOCKS, BLOCKS + 1
"""Which of the eight hold pixels, and the first part of weights."""
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

    sizes: Sizes
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
        top: Value,
        inside: Callable[[Value, Value], None],
        outside: Callable[[Value], None],
    ) -> None:
        """Goes through the rows that are met of an image from row `top` of the output on.

        Gives `inside` which row it is and at which pixel it begins, and `outside` the latter of what is none.
        """
        sizes = self.sizes
        with code.loop(0, sizes.stride_down) as left, code.loop(0, self.tall) as down:
            y = (top + down) * sizes.stride_down + left - sizes.padding_down
            to = left * sizes.stride_across * self.remainder + down * self.line
            there = (y >= 0) & (y < sizes.height)
            with code.when(~there), code.loop(0, sizes.stride_across) as other:
                outside(to + other * self.remainder)
            with code.when(there):
                inside(y, to)

    def pixels(self, code: Code, pixel: Callable[[Value, Value], None]) -> None:
        """Goes through the pixels of a row: which it is, and how far from where the row begins it lies."""
        across, padding = self.sizes.stride_across, self.sizes.padding_across
        with code.loop(0, across) as other:
            first = (other + across - padding % across) % across
            before = (first + padding) // across
            at = code.variable(other * self.remainder + before * self.together)
            with code.loop(first, self.sizes.width, across) as x:
                pixel(x, at.value)
                at.value += self.together


def at_a_time(code: Code, count: Value, most: int, some: Callable[[int, Value], None]) -> None:
    """Has `some` do a `count` of anything, at `most` so many at a time: how many, and from which on."""
    whole = count - count % most
    with code.loop(0, whole, most) as first:
        some(most, first)
    for left_over in range(1, most):
        with code.when((count - whole).equals(left_over)):
            some(left_over, whole)


def multiplied(
    code: Code,
    unit: Tiles,
    pixels: Sequence[Pointer],
    weights: Pointer,
    taps: Pointer,
    number: Value,
    windows: Value,
    blocks: Value,
    plane: Value,
    sums: Pointer,
    apart: Sequence[Value] = (),
) -> None:
    """The sums of tiles of `pixels` under a `number` of `taps` of windows, in as many of the unit's tiles.

    Other tiles are stored in `sums` meanwhile. Pixels are of `blocks` of channels, each a `plane` of so many
    numbers; the weights of one lie together, those of all `windows`. Pixels are exact, and each is multiplied
    by all parts of a weight; or in parts themselves, of which the second and the third lie so many numbers
    `apart` from the first. Then three of nine products are left out, which are 2^-23 of the whole together,
    of either sign, at most.
    """
    pitch = BLOCK * SHORT.size
    for total in range(len(pixels)):
        unit.clear(total)
    with code.loop(0, blocks) as block:
        tile = code.variable((weights + block * windows * (PARTS * TILE)).address())
        with code.loop(0, number) as tap:
            further = block * plane + taps[tap] * BLOCK
            places = [further, *(further + numbers for numbers in apart)]
            for part in range(PARTS):
                unit.load(_WEIGHTS + part, type(weights).at(tile.value) + part * TILE, pitch)
            for k, at in enumerate(pixels):
                for part, place in enumerate(places):
                    unit.load(_PIXELS, at + place, pitch)
                    for other in range(PARTS - part):
                        unit.multiply(k, _PIXELS, _WEIGHTS + other)
            store_now_and_then(unit, _PIXELS, sums)
            tile.value += PARTS * TILE * SHORT.size


def store_now_and_then(unit: Tiles, tile: int, sums: Pointer) -> None:
    """Stores any `tile` where the `sums` are to be written later.

    Of products that take more than some 2,000 cycles the sums take a thousand more to store, unless another
    tile is stored between them. Seen on an Intel Xeon, and no manual says why: 14 times nine products do not,
    16 times do, whatever is loaded.
    """
    unit.store(tile, sums, LANES * FLOAT.size)


class Places:
    """Where the sums of a piece of work are written: of pixels that follow one another, in runs.

    A run is of pixels of one row; of one pixel of several images, where these lie side by side. A tile is of
    16 pixels, one after the other, of those of each row that are gone through.
    """

    def __init__(
        self,
        pitch: Value,
        across: Value,
        together: Value,
        images: Value,
        wanted: tuple[Value, Value],
        steps: tuple[Value, Value, Value],
    ) -> None:
        """Rows of `pitch` pixels of `together` images, of which so many `images` are there.

        So many pixels `across` are gone through, and those are `wanted`, down and across; `steps` are how
        many numbers lie between those of one image and the next, one row and the next, one pixel and the
        next.
        """
        alone = together.equals(1)
        image, self.row, self.pixel = steps
        self.line, self.across = pitch * together, across * together
        self.height, width = wanted
        self.tiles = (self.height * self.across + (SIDE - 1)) // SIDE
        self.size, self.wanted = alone.select(across, together), alone.select(width, images)
        self.step = alone.select(self.pixel, image)
        self.runs_of_row, self.wanted_of_row = alone.select(1, across), alone.select(1, width)
        whole = self.wanted.equals(self.size) & self.wanted_of_row.equals(self.runs_of_row)
        self.whole = whole & (self.size % SIDE).equals(0)
        """Whether each tile is of one run, and all its pixels are wanted."""

    def near(self, tile: Value) -> Value:
        """At which pixel one begins, of those that lie near."""
        first = tile * SIDE
        return first // self.across * self.line + first % self.across

    def _first(self, first: Value) -> tuple[Value, Value, Value]:
        """How many pixels of its run lie before the `first`, and where that run is, across and down."""
        begun = first // self.size
        return first % self.size, begun % self.runs_of_row, begun // self.runs_of_row

    def _where(self, skipped: Value, x: Value, y: Value) -> Value:
        return y * self.row + x * self.pixel + skipped * self.step

    def runs(self, code: Code, first: Value, count: int) -> Iterator[tuple[Value, Value, Value, Value]]:
        """Of `count` pixels from the `first` on, what there is to write, once for all runs.

        Gives after which of the pixels a run begins, where its first is written, how many there are, and how
        far apart they are written.
        """
        done = code.variable(0)
        skipped, x, y = (code.variable(each) for each in self._first(first))
        with code.repeat() as again:
            length = (self.size - skipped.value).smaller(count - done.value)
            inside = (x.value < self.wanted_of_row) & (y.value < self.height)
            number = inside.select((self.wanted - skipped.value).smaller(length), 0)
            yield done.value, self._where(skipped.value, x.value, y.value), number, self.step
            done.value += length
            skipped.value = done.value.constant(LONG, 0)
            following = x.value + 1
            ended = following.equals(self.runs_of_row)
            x.value = ended.select(0, following)
            y.value += ended.to(LONG)
            again(done.value < count)

    def put(
        self,
        code: Code,
        unit: Tiles,
        count: int,
        tile: Value,
        sums: Pointer,
        target: Pointer,
        first: Value,
        outputs: Value,
        bias: Pointer | None = None,
    ) -> None:
        """Writes the sums in the first `count` of the unit's tiles, of pixels from those of a `tile` on.

        They are of 16 of so many `outputs`, from the `first` on, and go to the `target` of all. Where all are
        wanted and there is no `bias` to add, the unit writes them itself; the others by way of `sums`.
        """
        left, own = outputs - first, target + first
        at_once = self.whole & (left >= SIDE)
        if bias is not None:
            at_once = at_once & ~bias.given()
        with code.when(at_once):
            for k in range(count):
                to = self._where(*self._first((tile + k) * SIDE))
                unit.store(k, own + to, self.step * FLOAT.size)
        with code.when(~at_once):
            there = code.first(left.smaller(SIDE), LANES)
            start = code.variable(0.0, FLOAT.of(LANES))
            if bias is not None:
                with code.when(bias.given()):
                    start.value = (bias + first).load(LANES, there)
            for k in range(count):
                unit.store(k, sums + k * SIDE * LANES, LANES * FLOAT.size)
            for begun, at, number, step in self.runs(code, tile * SIDE, count * SIDE):
                with code.loop(0, number) as pixel:
                    values = (sums + (begun + pixel) * LANES).load(LANES)
                    (own + at + pixel * step).store(values + start.value, there)
