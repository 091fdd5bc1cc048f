"""The gradient of a convolution's input on the processor's unit for matrices, everywhere.

A gradient is no spike: it is the sum of three numbers of bfloat16, as a weight is, and of the nine products
of both the six are computed that reach the digits of a float32. Pixels of the input that are the same
remainder by the stride apart meet the same weights, at pixels of the output that follow one another: for each
remainder it is a convolution of its own, at a stride of 1.
"""

from hibana.events.convolution.amx.tiles import (
    BLOCK,
    BLOCKS,
    PARTS,
    TILE,
    Places,
    any_strange,
    at_a_time,
    in_parts,
    multiplied,
    strange_numbers,
)
from hibana.events.convolution.kernels import Sizes
from hibana.events.lanes.rows import LANES, transposed
from hibana.native import INT, SHORT, Bytes, Code, Floats, Ints, Longs, Shorts, Value, kernel
from hibana.native.amx import SIDE, tiles

__all__ = ["input_gradient", "pack"]


@kernel
def pack(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    order: Longs,
    target: Shorts,
    strange: Bytes,
    outputs: Value,
    channels: Value,
    taps: Value,
    channels_last: Value,
) -> None:
    """Weights as ``[tiles of channels][blocks of outputs][taps][parts][16][16][2]``, zeros between.

    They are ``[outputs][channels][taps]``, or ``[outputs][taps][channels]`` if `channels_last`; taps are put
    in `order`. One piece of work is one block of outputs of one tile of channels; whether any of its weights
    has no parts is said in `strange`.
    """
    blocks = (outputs + (BLOCK - 1)) // BLOCK
    row = taps * LANES
    with code.scratch((Floats, row * BLOCK)) as (rows,), code.loop(begin, end) as piece:
        first, block = piece // blocks * SIDE, piece % blocks
        count, wide = (channels - first).smaller(SIDE), (outputs - block * BLOCK).smaller(BLOCK)
        there = code.first(count, LANES)
        found = code.variable(0, INT.of(LANES))
        with code.when((count < SIDE) | (wide < BLOCK)):
            rows.clear(row * BLOCK)
        with code.loop(0, wide) as output:
            at = source + (block * BLOCK + output) * channels * taps
            with code.when(channels_last > 0), code.loop(0, taps) as tap:
                (rows + output * row + tap * LANES).store((at + tap * channels + first).load(LANES, there))
            with code.when(channels_last.equals(0)):
                lying, lanes = at + first * taps, code.constant(LANES)
                transposed(code, rows + output * row, lanes, lying, taps, count, taps)
        with code.loop(0, taps) as tap:
            tile = target + (piece * taps + tap) * (PARTS * TILE)
            with code.loop(0, SIDE) as pair:
                one = rows + pair * 2 * row + order[tap] * LANES
                both = [at.load(LANES) for at in (one, one + row)]
                for number in both:
                    found.value |= strange_numbers(number)
                parts = [in_parts(number, rounded=True) for number in both]
                for part, (low, high) in enumerate(zip(*parts, strict=True)):
                    (tile.of(Ints) + pair * LANES + part * (TILE // 2)).store((low >> 16) | high)
        strange[piece] = any_strange(code, found.value)


@kernel
def input_gradient(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    table: Shorts,
    taps: Longs,
    firsts: Longs,
    strange: Bytes,
    target: Floats,
    sizes: Sizes,
    images: Value,
    outputs: Value,
    deep: Value,
    tall: Value,
    pitch: Value,
    across: Value,
    together: Value,
    above: Value,
    before: Value,
    near: Value,
) -> None:
    """The gradient of the input from that of the output and what :func:`pack` made of the weights.

    One piece of work is `deep` times the stride rows of the input of `together` images. The pixels of the
    output that they meet lie near in three parts, each block of channels `near` numbers, in `tall` rows of
    `pitch`, `above` of them before the first that is its own and `before` pixels before the first of a row;
    each pixel of one image beside those of the others. Those of the remainder ``r`` meet the taps from
    ``firsts[r]`` up to ``firsts[r + 1]``, and `taps` says at which pixel they begin. So many pixels `across`
    are gone through, some of which may lie between the rows of the input: these are computed too, and not
    written. Whether any of the gradient has no parts is said in `strange`.
    """
    blocks = (outputs + (BLOCK - 1)) // BLOCK
    part_numbers = near * blocks
    stride_down, stride_across = sizes.stride_down, sizes.stride_across
    steps = (sizes.height + stride_down - 1) // stride_down
    bands = (steps + deep - 1) // deep
    windows = sizes.kernel_height * sizes.kernel_width
    row = sizes.width * sizes.channels
    with tiles(code) as unit, code.scratch((Shorts, part_numbers * PARTS)) as (pixels,):
        sums = code.array(Floats, BLOCKS * SIDE * LANES)
        pixels.clear(part_numbers * PARTS)
        with code.loop(begin, end) as piece:
            image, top = piece // bands * together, piece % bands * deep
            count = (images - image).smaller(together)
            found = code.variable(0, INT.of(LANES))
            with code.loop(0, tall) as line:
                y = top + line - above
                to = pixels + (before + line * pitch) * together * BLOCK
                inside = (y >= 0) & (y < sizes.out_height)
                with code.when(~inside), code.loop(0, blocks * PARTS) as block:
                    (to + near * block).clear(sizes.out_width * together * BLOCK)
                with code.when(inside), code.loop(0, count) as i:
                    at = gradient + ((image + i) * sizes.out_height + y) * sizes.out_width * outputs
                    with code.loop(0, sizes.out_width) as x, code.loop(0, outputs, LANES) as output:
                        there = code.first((outputs - output).smaller(LANES), LANES)
                        numbers = (at + x * outputs + output).load(LANES, there)
                        found.value |= strange_numbers(numbers)
                        place = to + (x * together + i) * BLOCK + output // BLOCK * near + output % BLOCK
                        for part, bits in enumerate(in_parts(numbers, rounded=True)):
                            (place + part_numbers * part).store((bits >> 16).to(SHORT))
            strange[piece] = any_strange(code, found.value)
            with code.loop(0, stride_down) as down, code.loop(0, stride_across) as further:
                remainder = down * stride_across + further
                first, last = firsts[remainder], firsts[remainder + 1]
                wide = (sizes.width - further + stride_across - 1) // stride_across
                high = ((sizes.height - down + stride_down - 1) // stride_down - top).smaller(deep).larger(0)
                apart = row * sizes.height, row * stride_down, sizes.channels * stride_across
                places = Places(pitch, across, together, count, (high, wide), apart)
                first_row = image * sizes.height + top * stride_down + down
                out = target + (first_row * row + further * sizes.channels)
                with code.loop(0, sizes.channels, SIDE) as channel:
                    weights = table + (channel // SIDE * blocks * windows + first) * (PARTS * TILE)

                    def some(number: int, tile: Value) -> None:
                        at = [pixels + places.near(tile + k) * BLOCK for k in range(number)]
                        parts = [part_numbers, part_numbers * 2]
                        of = last - first, windows, blocks, near
                        multiplied(code, unit, at, weights, taps + first, *of, sums, parts)
                        places.put(code, unit, number, tile, sums, out, channel, sizes.channels)

                    at_a_time(code, places.tiles, BLOCKS, some)
