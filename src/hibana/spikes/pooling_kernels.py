"""Kernels of the max pooling of bits: channels-last images, windows without overlap."""

from hibana.runtime.kernels import BYTE, FLOAT, SHORT, Bytes, Code, Floats, Group, Shorts, Value, kernel

__all__ = ["backward", "forward"]

VECTOR = 16
"""Channels of a vector."""


class Sizes(Group):
    """Sizes of the images, of the window, and of the output, in pixels."""

    channels: Value
    height: Value
    width: Value
    window_height: Value
    window_width: Value
    out_height: Value
    out_width: Value


@kernel
def forward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Bytes,
    target: Floats,
    selected: Bytes,
    sizes: Sizes,
) -> None:
    """Writes rows of output pixels: `target` is 1 if a pixel of the window is, and `selected` is its index.

    If several pixels are 1, the index is that of the first. The number of channels must be a multiple of 16.
    `bits` are those of contiguous images. `selected` may be null.
    """
    pixel_bytes = sizes.channels // 8
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        row = image * sizes.height + y * sizes.window_height
        with code.loop(0, sizes.out_width) as x, code.loop(0, sizes.channels, VECTOR) as channel:
            maximum, first_index = code.variable(0, SHORT), code.variable(0, BYTE.of(VECTOR))
            corner = bits + ((row * sizes.width + x * sizes.window_width) * pixel_bytes + channel // 8)
            index = code.variable(0, BYTE.of(VECTOR))
            with code.loop(0, sizes.window_height) as down, code.loop(0, sizes.window_width) as across:
                pixel = corner + (down * sizes.width + across) * pixel_bytes
                spiked = pixel.of(Shorts).load(align=1)
                is_first = (spiked & ~maximum.value).mask(VECTOR)
                first_index.value = is_first.select(index.value, first_index.value)
                maximum.value |= spiked
                index.value += 1
            at = (item * sizes.out_width + x) * sizes.channels + channel
            (target + at).store(maximum.value.mask(VECTOR).select(code.constant(1.0, FLOAT.of(VECTOR)), 0.0))
            with code.when(selected.is_not_null()):
                (selected + at).store(first_index.value)


@kernel
def backward(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    target: Floats,
    selected: Bytes,
    sizes: Sizes,
    columns: int,
) -> None:
    """Writes the gradient of rows of windows: the selected pixel of each gets the gradient, others zero."""
    with code.loop(begin, end) as item:
        image, y = item // sizes.out_height, item % sizes.out_height
        with code.loop(0, sizes.window_height) as down:
            row = image * sizes.height + y * sizes.window_height + down
            with code.loop(0, sizes.out_width) as x:
                source = (item * sizes.out_width + x) * sizes.channels
                corner = (row * sizes.width + x * columns) * sizes.channels
                indices = [(down * columns + i).to(BYTE).spread(VECTOR) for i in range(columns)]
                with code.loop(0, sizes.channels, VECTOR) as channel:
                    selected_index = (selected + (source + channel)).load(VECTOR)
                    values = (gradient + (source + channel)).load(VECTOR)
                    for i, index in enumerate(indices):
                        at = target + (corner + sizes.channels * i + channel)
                        at.store(selected_index.equals(index).select(values, 0.0))
            uncovered = sizes.width - sizes.out_width * sizes.window_width
            at = target + ((row + 1) * sizes.width - uncovered) * sizes.channels
            at.clear(uncovered * sizes.channels)
        with code.when((y + 1).equals(sizes.out_height)):  # rows below the last window
            first = image * sizes.height + sizes.out_height * sizes.window_height
            row_floats = sizes.width * sizes.channels
            (target + first * row_floats).clear(((image + 1) * sizes.height - first) * row_floats)
