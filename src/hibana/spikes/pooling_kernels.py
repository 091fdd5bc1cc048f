"""Kernels of max-pooling of spikes kept as bits, channels last, windows that do not overlap."""

from collections.abc import Iterator
from contextlib import contextmanager

from hibana.runtime.kernels import (
    BYTE,
    FLOAT,
    SHORT,
    Bytes,
    Code,
    Floats,
    Group,
    Shorts,
    Value,
    kernel,
)

__all__ = ["backward", "forward"]

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
    bits: Bytes,
    target: Floats,
    pooled: Bytes,
    which: Bytes,
    sizes: Sizes,
) -> None:
    """Rows of output pixels: 1 where a pixel of the window spiked, and the number of the first that did.

    The number of channels must be a multiple of 16. `bits`, and the result's in `pooled`, are those of
    contiguous images.
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
            with code.when(pooled.is_not_null()):
                (pooled + at // 8).of(Shorts).store(found.value, align=1)
            with code.when(which.is_not_null()):
                (which + at).store(places.value)


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
    """Rows of windows, `columns` wide: the gradient goes to the pixel that was taken, zeros to all others."""
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        with code.loop(0, sizes.window_height) as down:
            row = image * sizes.height + y * sizes.window_height + down
            with code.loop(0, sizes.out_width) as x:
                source = (item * sizes.out_width + x) * sizes.channels
                corner = (row * sizes.width + x * columns) * sizes.channels
                places = [(down * columns + i).to(BYTE).spread(VECTOR) for i in range(columns)]
                with code.loop(0, sizes.channels, VECTOR) as channel:
                    taken = (which + (source + channel)).load(VECTOR)
                    given = (gradient + (source + channel)).load(VECTOR)
                    for i, place in enumerate(places):
                        at = target + (corner + sizes.channels * i + channel)
                        at.store(taken.equals(place).select(given, 0.0))
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
