"""A convolution with spikes listed per pixel: when to use it, and the calls of its kernels."""

from math import prod

import torch
from torch import Tensor

from hibana.spikes.bits import ONE, Planes
from hibana.spikes.convolution import pixel_kernels as kernels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.linear import product
from hibana.spikes.simd.lists import PLACES, WORD
from hibana.spikes.simd.rows import Row, panel

__all__ = ["forward", "parts", "is_pixelwise", "is_pixelwise_for_weights", "lists_of_window"]
__all__ += ["weight_gradient"]

FEWEST_CHANNELS = 8
"""Fewest channels of a pixel-wise convolution: with fewer, im2col packs the bits under a window into few
words."""
MOST_INPUT_PIXELS = 1.2
"""Most pixels of the image per pixel of the output for a pixel-wise weight gradient."""
PIXELS = 256
"""Output pixels of a work item."""
PIXELS_PER_TILE = 512
"""Output pixels, of several images, per pass over weights that exceed the L2 cache."""
BEYOND_L2 = 1 << 19
"""Number of float32 weights from which on they exceed the L2 cache."""
CACHED_FLOATS = 1 << 14
"""Float32 values of a gradient that stay in the L1 and L2 caches."""
UNROLLED = 5
"""Most pixels of a window's row that the weight gradient unrolls."""
MOST_ROW_NUMBERS = 1 << 18
"""Most numbers in the rows of pixels that a window spans, with channels padded to 64."""


def is_pixelwise(geometry: Geometry, outputs: int, density: float) -> bool:
    """Whether the forward lists the spikes of each pixel, instead of the spikes under each window.

    Windows must overlap, not be dilated across, and have at least FEWEST_CHANNELS channels; with a stride
    above 1, at most WORD (64) channels. A row of the image must have at most PLACES numbers, because lists
    store positions in a row. Above the crossover density, tables of sums over windows are faster.
    """
    most_channels = WORD if max(geometry.stride) > 1 else geometry.channels
    fits_index = geometry.image[1] * geometry.channels <= PLACES
    fits = geometry.dilation[1] == 1 and FEWEST_CHANNELS <= geometry.channels <= most_channels
    return fits_index and density <= product.crossover(outputs) and fits and _windows_overlap(geometry)


def is_pixelwise_for_weights(geometry: Geometry, density: float) -> bool:
    """Whether the weight gradient lists the spikes of each pixel, instead of the spikes under each window.

    The stride must be 1, and the image at most MOST_INPUT_PIXELS times as large as the output.
    """
    (height, width), (down, across) = geometry.image, geometry.output
    fits = height * width <= MOST_INPUT_PIXELS * down * across and geometry.channels >= FEWEST_CHANNELS
    is_sparse = density <= product.gradient_crossover()
    return is_sparse and geometry.stride == (1, 1) and fits and _windows_overlap(geometry)


def lists_of_window(geometry: Geometry) -> int:
    """Words of bits that are listed for a window: of each of its pixels, or of its gathered bits."""
    pixels, channels = prod(geometry.kernel), geometry.channels
    is_pixelwise = channels >= FEWEST_CHANNELS and _windows_overlap(geometry)
    return pixels * -(-channels // WORD) if is_pixelwise else -(-pixels * channels // WORD)


def _windows_overlap(geometry: Geometry) -> bool:
    """Whether neighboring windows of a row share pixels, and the rows under one window are short enough.

    The rows under a window, with each pixel's channels padded to at least 64, must have fewer numbers than
    MOST_ROW_NUMBERS.
    """
    down, across = geometry.reach
    numbers = (down + 1) * (geometry.image[1] + across) * max(64, geometry.channels)
    return geometry.kernel[1] > geometry.stride[1] and numbers < MOST_ROW_NUMBERS


def forward(input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution ``[N, outputs, height, width]`` of spikes in bits; in memory, channels are last."""
    (planes, rows, _), (height, width), outputs = input_.bits.shape, geometry.output, len(weight)
    images, row = rows // geometry.image[0], panel(outputs)
    parts = -(-height // max(1, PIXELS // width, geometry.reach[0]))
    tile_height = -(-height // parts)
    out = torch.empty(images, height, width, outputs, dtype=torch.float32, device="cpu")
    kernels.forward(
        images * -(-height // tile_height),
        bits=input_.bits,
        table=product.pack_weights(weight, row, input_.scales),
        bias=bias,
        target=out,
        images=images,
        planes=planes,
        **geometry.sizes,
        outputs=outputs,
        tile_height=tile_height,
        per_tile=_images_per_tile(planes, outputs, geometry) if tile_height == height else 1,
        row=row,
    )
    return out.permute(0, 3, 1, 2)


def _images_per_tile(planes: int, outputs: int, geometry: Geometry) -> int:
    """Images per work item of the forward: several if images are small and weights exceed the L2 cache."""
    pixels, taps = geometry.output[0] * geometry.output[1], geometry.kernel[0] * geometry.kernel[1]
    return max(1, PIXELS_PER_TILE // pixels) if planes * taps * geometry.channels * outputs > BEYOND_L2 else 1


def _unrolled(geometry: Geometry, row: Row) -> int:
    """Pixels of a window's row that the weight gradient unrolls: all if they are adjacent and few, else 1.

    Their sums must fit into registers. A vector of 16 floats is one of 32 registers with AVX-512, and two or
    more of 16 registers without.
    """
    width, most_vectors = geometry.kernel[1], 24 if row.compresses else 6
    is_few = width <= UNROLLED and row.vectors * width <= most_vectors
    return width if is_few and geometry.dilation[1] == 1 else 1


def parts(rows: int, outputs: int, planes: int, geometry: Geometry, threads: int) -> product.Parts:
    """The parallel parts of :func:`weight_gradient`: ranges of images, outputs, and rows of the kernel."""
    units = planes * -(-geometry.channels // 64) * geometry.kernel[0]
    images = rows // (geometry.output[0] * geometry.output[1])
    split = product.parts(rows, outputs, units * geometry.kernel[1], threads, images)
    return split._replace(down=min(split.down, units))


def weight_gradient(input_: Planes, rows: Tensor, geometry: Geometry) -> Tensor:
    """The weight gradient ``[outputs, channels, height, width]`` of a convolution with stride 1.

    Its parts are computed in parallel (:func:`parts`); the results of different ranges of images are added.

    Args:
        input_: the images as bit planes, ``[planes, N * image height, words]``.
        rows: the gradient of the output, ``[N * output height * output width, outputs]``.
        geometry: the sizes of the convolution.
    """
    outputs, planes = rows.shape[1], input_.bits.shape[0]
    row = panel(outputs)
    images = input_.bits.shape[1] // geometry.image[0]
    down, across = geometry.reach
    pitch = geometry.image[1] + across
    cached_pixels = CACHED_FLOATS // row.floats
    pieces = -(-geometry.image[0] // max(1, cached_pixels // pitch))
    tile_height = -(-geometry.image[0] // pieces)
    per_tile = max(1, cached_pixels // (pitch * (tile_height + down))) if pieces == 1 else 1
    split = parts(rows.shape[0], outputs, planes, geometry, torch.get_num_threads())
    inputs = planes * geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    out = torch.empty(split.rows, outputs, inputs, dtype=torch.float32, device="cpu")
    kernels.weight_gradient(
        split.number,
        bits=input_.bits,
        gradient=rows,
        targets=out,
        images=images,
        planes=planes,
        **geometry.sizes,
        outputs=outputs,
        tile_height=tile_height,
        per_tile=per_tile,
        parts_across=split.across,
        parts_down=split.down,
        per_part=-(-images // split.rows),
        row=row,
        unrolled=_unrolled(geometry, row),
    )
    total = out[0] if split.rows == 1 else out.sum(0)
    if input_.scales != ONE:
        total = product.sum_planes(total.view(outputs, planes, -1), input_.scales)
    return total.view(outputs, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2)
