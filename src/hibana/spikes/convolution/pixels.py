"""Calls the pixel-wise kernels: sums and weight gradient of a convolution, spikes listed per pixel."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import BoundLauncher
from hibana.spikes.convolution import pixel_kernels as kernels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.linear import product
from hibana.spikes.planes import ONE, Planes
from hibana.spikes.simd.lists import PLACES, WORD
from hibana.spikes.simd.rows import Row, panel

__all__ = [
    "forward",
    "parts",
    "is_pixelwise",
    "is_pixelwise_for_weights",
    "weight_gradient",
]

FEWEST = 8
"""Least number of channels: with fewer, im2col fits the bits under a window into few words."""
WASTED = 1.2
"""Most pixels of the image per pixel of the output for which the weight gradient is pixel-wise."""
PIXELS = 256
"""Output pixels of a work item."""
PIXELS_PER_TILE = 512
"""Output pixels, of several images, per pass over weights that exceed the L2 cache."""
BEYOND_L2 = 1 << 19
"""Number of float32 weights from which on they exceed the L2 cache."""
NEAR = 1 << 14
"""Float32 values of weights, or of a gradient, that stay in the L1 and L2 caches."""
MOST = 1 << 18
"""Most numbers in the rows of pixels that a window spans, channels padded to 64."""


def is_pixelwise(geometry: Geometry, outputs: int, density: float) -> bool:
    """Whether spikes to be summed are listed for each pixel, and not for each window that they lie under."""
    counted = geometry.image[1] * geometry.channels <= PLACES
    return counted and density <= product.crossover(outputs) and _by_pixels(geometry)


def _by_pixels(geometry: Geometry) -> bool:
    """Whether the spikes of each pixel are listed by themselves, and added to every window over the pixel.

    So it is where windows overlap, are not dilated across, and have at least `FEWEST` channels (with a stride
    at most a word of 64).
    """
    most = WORD if max(geometry.stride) > 1 else geometry.channels
    in_one = geometry.dilation[1] == 1 and FEWEST <= geometry.channels <= most
    return in_one and _overlap(geometry)


def is_pixelwise_for_weights(geometry: Geometry, density: float) -> bool:
    """:func:`is_pixelwise` for the weights' gradient, to which each pixel adds."""
    return density <= product.gradient_crossover() and _by_pixels_for_weights(geometry)


def _by_pixels_for_weights(geometry: Geometry) -> bool:
    (height, width), (down, across) = geometry.image, geometry.output
    most = height * width <= WASTED * down * across and geometry.channels >= FEWEST
    return geometry.stride == (1, 1) and most and _overlap(geometry)


def _overlap(geometry: Geometry) -> bool:
    """Whether windows overlap horizontally, and the rows that a window spans fit into :data:`MOST`."""
    down, across = geometry.reach
    rows = (down + 1) * (geometry.image[1] + across) * max(64, geometry.channels)
    return geometry.kernel[1] > geometry.stride[1] and rows < MOST


def forward(input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``[N, outputs, height, width]``, channels last."""
    row = panel(weight.shape[0])
    bound = _bound(input_.bits.shape, weight.shape[0], geometry, row)
    out = torch.empty(bound.shape, dtype=torch.float32, device="cpu")
    table = product.packed(weight, row, input_.scales)
    bound.kernel(bound.work_items, bits=input_.bits, table=table, bias=bias, target=out)
    return out.permute(0, 3, 1, 2)


class _Bound(NamedTuple):
    """A forward kernel with its sizes bound."""

    kernel: BoundLauncher
    shape: tuple[int, ...]
    """Of the output, channels last."""
    work_items: int


@lru_cache(maxsize=256)
def _bound(bits: torch.Size, outputs: int, geometry: Geometry, row: Row) -> _Bound:
    """The kernel for `bits` of this shape."""
    (planes, rows, _), (height, width) = bits, geometry.output
    images = rows // geometry.image[0]
    parts = -(-height // max(1, PIXELS // width, geometry.reach[0]))
    deep = -(-height // parts)
    per_tile = _images_per_tile(planes, outputs, geometry) if deep == height else 1
    sizes = {"images": images, "planes": planes, "outputs": outputs, "deep": deep, "per_tile": per_tile}
    kernel = kernels.forward.bind(**sizes, **geometry.sizes, row=row)
    return _Bound(kernel, (images, height, width, outputs), images * -(-height // deep))


def _images_per_tile(planes: int, outputs: int, geometry: Geometry) -> int:
    """Images per work item: several, if images are small and weights exceed the L2 cache."""
    pixels, taps = geometry.output[0] * geometry.output[1], geometry.kernel[0] * geometry.kernel[1]
    return max(1, PIXELS_PER_TILE // pixels) if planes * taps * geometry.channels * outputs > BEYOND_L2 else 1


def _unrolled(geometry: Geometry, row: Row) -> int:
    """Places of a row of the window that are unrolled, if their sums fit into registers; else 1.

    A vector of 16 floats takes one of AVX-512's 32 registers, and two or more of other processors' 16.
    """
    most = 24 if row.compresses else 6
    return geometry.unrolled if row.vectors * geometry.unrolled <= most else 1


def parts(rows: int, outputs: int, planes: int, geometry: Geometry, threads: int) -> product.Parts:
    """The parallel parts of :func:`weight_gradient`, divided by rows of the kernel."""
    units = planes * -(-geometry.channels // 64) * geometry.kernel[0]
    images = rows // (geometry.output[0] * geometry.output[1])
    split = product.parts(rows, outputs, units * geometry.kernel[1], threads, images)
    return split._replace(down=min(split.down, units))


def weight_gradient(input_: Planes, rows: Tensor, geometry: Geometry) -> Tensor:
    """The weight gradient ``[outputs, channels, *kernel]`` at stride 1.

    Args:
        input_: bits of the images.
        rows: gradient of the output, ``[pixels, outputs]``.
        geometry: of the convolution.
    """
    outputs, planes = rows.shape[1], input_.bits.shape[0]
    row = panel(outputs)
    images = input_.bits.shape[1] // geometry.image[0]
    down, across = geometry.reach
    pitch = geometry.image[1] + across
    places = NEAR // row.floats
    pieces = -(-geometry.image[0] // max(1, places // pitch))
    deep = -(-geometry.image[0] // pieces)
    per_tile = max(1, places // (pitch * (deep + down))) if pieces == 1 else 1
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
        deep=deep,
        per_tile=per_tile,
        parts_across=split.across,
        parts_down=split.down,
        per_part=-(-images // split.rows),
        row=row,
        unrolled=_unrolled(geometry, row),
    )
    summed = out[0] if split.rows == 1 else out.sum(0)
    if input_.scales != ONE:
        summed = product.of_numbers(summed.view(outputs, planes, -1), input_.scales)
    return summed.view(outputs, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2)
