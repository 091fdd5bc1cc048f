"""Kernels of max-pooling of spikes, channels last, windows that do not overlap."""

from collections.abc import Iterator
from contextlib import contextmanager

from hibana.runtime.kernels import (
    BYTE,
    FLOAT,
    INT,
    LONG,
    SHORT,
    Bytes,
    Code,
    Floats,
    Group,
    Longs,
    Shorts,
    Value,
    kernel,
)

__all__ = ["backward", "forward", "forward_of_bits", "support"]

VECTOR = 16
"""Channels of a vector."""


class Sizes(Group):
    """Of the images, of the window, and of what comes out."""

    channels: Value
    height: Value
    width: Value
    window_height: Value
    window_width: Value
    out_height: Value
    out_width: Value


@contextmanager
def _window(code: Code, sizes: Sizes) -> Iterator[tuple[Value, Value, Value]]:
    """Loops over the pixels of a window: its row, its column, and its number as a vector of bytes."""
    place = code.variable(0, BYTE.of(VECTOR))
    with code.loop(0, sizes.window_height) as down, code.loop(0, sizes.window_width) as across:
        yield down, across, place.value
        place.value += 1


@kernel
def forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    target: Floats,
    which: Bytes,
    strange: Longs,
    sizes: Sizes,
) -> None:
    """Rows of output pixels: 1 where a pixel of the window spiked, and the number of the first that did, or
    0.

    `strange` is set to 1 if any value is neither 0 nor 1.
    """
    odd = code.variable(0, SHORT)
    with code.loop(begin, end) as item, code.loop(0, sizes.out_width) as x:
        image, y = item // sizes.out_height, item % sizes.out_height
        pixel = (image * sizes.height + y * sizes.window_height) * sizes.width + x * sizes.window_width
        for channel, there in code.vectors(sizes.channels, VECTOR):
            found, places = code.variable(0.0, FLOAT.of(VECTOR)), code.variable(0, BYTE.of(VECTOR))
            with _window(code, sizes) as (down, across, place):
                at = (pixel + down * sizes.width + across) * sizes.channels + channel
                values = (source + at).load(VECTOR, there)
                spiked = values.differs(0.0)
                odd.value |= (spiked & values.differs(1.0)).word()
                places.value = (spiked & found.value.equals(0.0)).select(place, places.value)
                found.value = spiked.select(1.0, found.value)
            at = (item * sizes.out_width + x) * sizes.channels + channel
            (target + at).store(found.value, there)
            with code.when(which.given()):
                (which + at).store(places.value, there)
    with code.when(odd.value.differs(0)):
        strange[0] = 1


@kernel
def forward_of_bits(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Bytes,
    target: Floats,
    pooled: Bytes,
    which: Bytes,
    sizes: Sizes,
) -> None:
    """As :func:`forward`, from bits; the number of channels must be a multiple of 16.

    `bits`, and the result's in `pooled`, are those of contiguous images.
    """
    pixel_bytes = sizes.channels // 8
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        row = image * sizes.height + y * sizes.window_height
        with code.loop(0, sizes.out_width) as x, code.loop(0, sizes.channels, VECTOR) as channel:
            found, places = code.variable(0, SHORT), code.variable(0, BYTE.of(VECTOR))
            corner = bits + ((row * sizes.width + x * sizes.window_width) * pixel_bytes + channel // 8)
            with _window(code, sizes) as (down, across, place):
                pixel = corner + (down * sizes.width + across) * pixel_bytes
                spiked = pixel.of(Shorts).load(align=1)
                places.value = (spiked & ~found.value).mask(VECTOR).select(place, places.value)
                found.value |= spiked
            at = (item * sizes.out_width + x) * sizes.channels + channel
            (target + at).store(found.value.mask(VECTOR).select(code.constant(1.0, FLOAT.of(VECTOR)), 0.0))
            with code.when(pooled.given()):
                (pooled + at // 8).of(Shorts).store(found.value, align=1)
            with code.when(which.given()):
                (which + at).store(places.value)


def _columns(code: Code, width: Value, known: int) -> Iterator[tuple[Value, int]]:
    """Loops over a row of a window: yields the first pixel and a count, once if the width is `known`, else 1
    each.
    """
    if known:
        yield code.constant(0), known
    else:
        with code.loop(0, width) as across:
            yield across, 1


@kernel
def backward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    target: Floats,
    which: Bytes,
    sizes: Sizes,
    columns: int,
) -> None:
    """Rows of windows: the gradient goes to the pixel that was taken, zeros to all others.

    `columns` is the width of the window if it is compiled in, else 0.
    """
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        with code.loop(0, sizes.window_height) as down:
            row = image * sizes.height + y * sizes.window_height + down
            with code.loop(0, sizes.out_width) as x:
                source = (item * sizes.out_width + x) * sizes.channels
                for across, pixels in _columns(code, sizes.window_width, columns):
                    corner = (row * sizes.width + x * sizes.window_width + across) * sizes.channels
                    first = down * sizes.window_width + across
                    places = [(first + i).to(BYTE).spread(VECTOR) for i in range(pixels)]
                    for channel, there in code.vectors(sizes.channels, VECTOR):
                        taken = (which + (source + channel)).load(VECTOR, there)
                        given = (gradient + (source + channel)).load(VECTOR, there)
                        for i, place in enumerate(places):
                            at = target + (corner + sizes.channels * i + channel)
                            at.store(taken.equals(place).select(given, 0.0), there)
            left = sizes.width - sizes.out_width * sizes.window_width
            (target + ((row + 1) * sizes.width - left) * sizes.channels).clear(left * sizes.channels)
        with code.when((y + 1).equals(sizes.out_height)):
            first, after = (
                image * sizes.height + sizes.out_height * sizes.window_height,
                (image + 1) * sizes.height,
            )
            (target + first * sizes.width * sizes.channels).clear(
                (after - first) * sizes.width * sizes.channels
            )


@kernel
def support(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Bytes,
    target: Longs,
    which: Bytes,
    sizes: Sizes,
    per_step: Value,
) -> None:
    """Rows of output pixels: the bits of the producer's mask at the pixels that :func:`forward` took.

    `bits` are those of whole images, padded to bytes for each step of `per_step` images.
    """
    count = sizes.out_width * sizes.channels
    words = (count + 63) // 64
    step_bytes = (per_step * sizes.height * sizes.width * sizes.channels + 7) // 8
    columns = sizes.window_width.to(INT)
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        below = bits + step_bytes * (image // per_step)
        top = image % per_step * sizes.height + y * sizes.window_height
        word = code.variable(0)
        with code.loop(0, sizes.out_width) as x, code.loop(0, sizes.channels) as channel:
            done = x * sizes.channels + channel
            place = which[item * count + done].to(INT)
            down, across = (place // columns).to(LONG), (place % columns).to(LONG)
            at = ((top + down) * sizes.width + x * sizes.window_width + across) * sizes.channels + channel
            bit = (below[at >> 3].to(LONG) >> (at & 7)) & 1
            word.value |= bit << (done & 63)
            with code.when((done & 63).equals(63)):
                target[words * item + (done >> 6)] = word.value
                word.value = 0
        with code.when((count & 63).differs(0)):
            target[words * item + words - 1] = word.value
