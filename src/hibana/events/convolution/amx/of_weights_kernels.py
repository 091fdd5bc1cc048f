"""The gradient of a convolution's weights on the processor's unit for matrices.

It is the product of the input under each place of the windows, transposed, and of the gradient of the output.
Spikes are exact in bfloat16 and the gradient is the sum of three such numbers, so that a product is three.
Pixels follow one another along both: what is under a place of the windows is the same row of pixels, further
on.
"""

from hibana.events.convolution.amx.sums_kernels import whole_numbers
from hibana.events.convolution.amx.tiles import (
    BLOCK,
    PARTS,
    TILE,
    Near,
    Places,
    any_strange,
    at_a_time,
    in_parts,
    store_now_and_then,
    strange_numbers,
)
from hibana.events.convolution.kernels import Sizes
from hibana.events.lanes.lists import WORD, bits_from, first_bits, transposed_bits, words_of
from hibana.events.lanes.rows import LANES
from hibana.native import (
    FLOAT,
    INT,
    SHORT,
    Bytes,
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

__all__ = ["CHUNK", "weight_gradient"]

CHUNK = 8
"""Tiles of pixels that are summed up before the sums are added to those before."""
TAPS = 3
"""Places of the windows that are done together: as many sums and tiles of pixels, and two of the gradient."""
SQUARE = SIDE * LANES
"""Sums of a tile."""


@kernel
def weight_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    gradient: Floats,
    taps: Longs,
    strange: Bytes,
    targets: Floats,
    sizes: Sizes,
    images: Value,
    outputs: Value,
    deep: Value,
    tall: Value,
    pitch: Value,
    together: Value,
    pixels: Value,
    items: Value,
    per_part: Value,
    planes: int,
) -> None:
    """The gradient from `planes` of bits and from that of the output, ``[parts, outputs, channels, taps]``.

    A piece of work is a part of the sum: so many of the `items`, each of `deep` rows of the output of
    `together` images. The `pixels` that they meet lie as :class:`Near` says, but each channel in a row of its
    own; `taps` says at which what is under each place of the windows begins. Whether any of the gradient has
    no parts is said in `strange`.
    """
    lying = Near(sizes, tall, pitch, together)
    windows = sizes.kernel_height * sizes.kernel_width
    bands = (sizes.out_height + deep - 1) // deep
    words, of_pixel = words_of(sizes.width * sizes.channels), words_of(sizes.channels)
    row = sizes.out_width * outputs
    tiles_in, tiles_out = ((each + (SIDE - 1)) // SIDE for each in (sizes.channels, outputs))
    along = pixels + BLOCK  # rows that do not lie on the same lines of a cache's sets
    length = (deep * lying.line + (BLOCK - 1)) // BLOCK
    wide = tiles_out * SIDE
    own = outputs * windows * sizes.channels
    with (
        tiles(code) as unit,
        code.scratch(
            (Longs, words + 1),
            (Longs, pixels * of_pixel * planes),
            (Shorts, along * of_pixel * WORD),
            (Shorts, length * tiles_out * (PARTS * TILE)),
            (Floats, wide * BLOCK),
            (Floats, tiles_out * tiles_in * windows * SQUARE),
        ) as (of_row, marks, turned, paired, some_rows, totals),
    ):
        sums = code.array(Floats, TAPS * SQUARE)
        of_row[words] = 0
        with code.loop(begin, end) as part:
            totals.clear(tiles_out * tiles_in * windows * SQUARE)
            found = code.variable(0, INT.of(LANES))
            with code.loop(part * per_part, ((part + 1) * per_part).smaller(items)) as item:
                image, top = item // bands * together, item % bands * deep
                count, height = (images - image).smaller(together), (sizes.out_height - top).smaller(deep)
                marks.clear(pixels * of_pixel * planes)

                def marked(y: Value, to: Value) -> None:
                    with code.loop(0, count) as i:
                        for plane in range(planes):
                            rows_before = (images * plane + image + i) * sizes.height + y
                            of_row.copy(bits + rows_before * words, words)
                            row_marks = marks + of_pixel * plane * pixels + to + i

                            def mark(x: Value, further: Value, row_marks: Pointer = row_marks) -> None:
                                with code.loop(0, of_pixel) as word:
                                    there = (sizes.channels - word * WORD).smaller(WORD)
                                    seen = bits_from(of_row, x * sizes.channels + word * WORD)
                                    row_marks[word * pixels + further] = seen & first_bits(code, there)

                            lying.pixels(code, mark)

                lying.rows(code, top, marked, lambda to: None)
                with code.loop(0, of_pixel) as word, code.loop(0, pixels, WORD) as some:
                    here = [marks + (word + of_pixel * plane) * pixels + some for plane in range(planes)]
                    for each in here:
                        transposed_bits(code, each)
                    with code.loop(0, (tiles_in * SIDE - word * WORD).smaller(WORD)) as channel:
                        to_row = turned + (word * WORD + channel) * along + some
                        for half in (0, BLOCK):
                            ones = [(each[channel] >> half).mask(BLOCK) for each in here]
                            (to_row + half).store(whole_numbers(code, ones))
                steps = row * sizes.out_height, row, outputs
                places = Places(pitch, pitch, together, count, (height, sizes.out_width), steps)
                rows = gradient + (image * sizes.out_height + top) * row
                met = (height * lying.line + (BLOCK - 1)) // BLOCK
                with code.loop(0, met) as block:
                    some_rows.clear(wide * BLOCK)
                    for first, to, number, step in places.runs(code, block * BLOCK, BLOCK):
                        with code.loop(0, number) as k:
                            for output, there in code.vectors(outputs, LANES):
                                numbers = (rows + to + k * step + output).load(LANES, there)
                                (some_rows + (first + k) * wide + output).store(numbers, there)
                    with code.loop(0, tiles_out) as tile, code.loop(0, SIDE) as pair:
                        low_row = some_rows + pair * 2 * wide + tile * SIDE
                        both = [each.load(LANES) for each in (low_row, low_row + wide)]
                        for numbers in both:
                            found.value |= strange_numbers(numbers)
                        to_tile = paired + (tile * length + block) * (PARTS * TILE) + pair * BLOCK
                        parts = [in_parts(numbers, rounded=True) for numbers in both]
                        for which, (low, high) in enumerate(zip(*parts, strict=True)):
                            (to_tile + which * TILE).of(Ints).store((low >> 16) | high)
                with code.loop(0, met, CHUNK) as chunk:
                    last = (chunk + CHUNK).smaller(met)
                    with code.loop(0, tiles_out) as tile, code.loop(0, tiles_in) as channels:
                        left = turned + channels * SIDE * along
                        right = paired + tile * length * (PARTS * TILE)
                        total = totals + (tile * tiles_in + channels) * windows * SQUARE

                        def some_taps(number: int, tap: Value) -> None:
                            where = [left + taps[tap + k] for k in range(number)]
                            _multiplied(code, unit, where, along, right, chunk, last, sums)
                            with code.loop(0, number * SQUARE, LANES) as k:
                                to = total + tap * SQUARE + k
                                to.store(to.load(LANES) + (sums + k).load(LANES))

                        at_a_time(code, windows, TAPS, some_taps)
            strange[part] = any_strange(code, found.value)
            target = targets + part * own
            with code.loop(0, outputs) as output, code.loop(0, sizes.channels) as channel:
                square = (output // SIDE * tiles_in + channel // SIDE) * windows * SQUARE
                place = totals + square + channel % SIDE * LANES + output % SIDE
                with code.loop(0, windows) as tap:
                    target[(output * sizes.channels + channel) * windows + tap] = place[tap * SQUARE]


def _multiplied(
    code: Code,
    unit: Tiles,
    left: list[Pointer],
    along: Value,
    right: Pointer,
    first: Value,
    last: Value,
    sums: Pointer,
) -> None:
    """The products of tiles `first` to `last` of what lies at each place, in rows `along`, and of parts."""
    for total in range(len(left)):
        unit.clear(total)
    with code.loop(first, last) as block:
        for k, at in enumerate(left):
            unit.load(TAPS + k, at + block * BLOCK, along * SHORT.size)
        for part in range(PARTS):
            held = 2 * TAPS + part % 2
            unit.load(held, right + (block * PARTS + part) * TILE, BLOCK * SHORT.size)
            for k in range(len(left)):
                unit.multiply(k, TAPS + k, held)
        store_now_and_then(unit, 2 * TAPS, sums)
    for total in range(len(left)):
        unit.store(total, sums + total * SQUARE, LANES * FLOAT.size)
