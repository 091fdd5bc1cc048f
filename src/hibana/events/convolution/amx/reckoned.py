"""What a convolution should take on the processor's unit for matrices: seconds of one thread.

Constants are nanoseconds, fitted, nine tenths of them within a fifth (an Intel Xeon with AMX).
"""

from hibana.events.convolution.amx import of_input, of_weights, sums
from hibana.events.convolution.amx.tiles import BLOCK, PARTS
from hibana.events.convolution.geometry import Geometry
from hibana.events.linear.reckoned import NANO
from hibana.native.amx import SIDE

__all__ = ["forward", "input_gradient", "weight_gradient"]


def forward(images: int, outputs: int, geometry: Geometry, threads: int) -> float:
    """Of the sums; fitted to 29 convolutions."""
    layout = sums.layout(images, geometry, threads)
    pieces, across = layout.pieces(images, geometry), -(-outputs // SIDE)
    blocks = -(-geometry.channels // BLOCK)
    tiles = pieces * layout.tiles() * across
    taps = geometry.kernel[0] * geometry.kernel[1]
    multiplied = tiles * taps * blocks * PARTS
    rows = min(layout.tall * geometry.stride[0], geometry.image[0])
    widened = pieces * layout.together * rows * geometry.image[1] * blocks
    packing = 1.1 * outputs * geometry.channels * taps
    return NANO * (26_000 + packing + 4.85 * multiplied + 3.0 * widened + 4.3 * SIDE * tiles)


def input_gradient(images: int, outputs: int, geometry: Geometry, threads: int) -> float:
    """Of the input's gradient, everywhere; fitted to the same."""
    layout = of_input.layout(images, outputs, geometry, threads)
    pieces, across = layout.pieces(images, geometry), -(-geometry.channels // SIDE)
    blocks, taps = -(-outputs // BLOCK), geometry.kernel[0] * geometry.kernel[1]
    tiles = pieces * layout.tiles() * across
    multiplied = tiles * taps * blocks * of_input.PRODUCTS
    packing = 1.6 * outputs * geometry.channels * taps
    written = tiles * geometry.stride[0] * geometry.stride[1]
    return NANO * (54_000 + packing + 7.2 * multiplied + 7.3 * SIDE * written)


def weight_gradient(images: int, outputs: int, geometry: Geometry, threads: int) -> float:
    """Of the weights' gradient; fitted to the same."""
    layout = of_weights.layout(images, geometry, threads)
    split = of_weights.split(images, geometry, threads)
    taps = geometry.kernel[0] * geometry.kernel[1]
    squares = -(-outputs // SIDE) * -(-geometry.channels // SIDE) * taps
    blocks = -(-layout.deep * layout.pitch * layout.together // BLOCK)
    multiplied = split.items * blocks * squares * PARTS
    added = split.items * -(-blocks // of_weights.CHUNK) * squares
    paired = split.items * blocks * -(-outputs // SIDE)
    marked = images * geometry.image[0] * geometry.image[1] * -(-geometry.channels // 64)
    written = split.parts * outputs * geometry.channels * taps
    each = 5.0 * multiplied + 44 * added + 254 * paired + 3.4 * marked + written
    return NANO * (28_000 + each) * threads / split.parts
