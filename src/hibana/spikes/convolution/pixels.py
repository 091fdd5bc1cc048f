"""Calls the pixel-wise kernels: sums and weight gradient of a convolution, spikes listed per pixel."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.producer import Producer
from hibana.runtime.kernels import Call, Sized, float_bits
from hibana.spikes.convolution import pixel_kernels as kernels
from hibana.spikes.convolution import window_kernels as windows
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.convolution.pieces import rows_per_tile
from hibana.spikes.linear import product
from hibana.spikes.planes import Planes
from hibana.spikes.simd.lists import HALF, PLACES, WORD
from hibana.spikes.simd.rows import Row, panel

__all__ = [
    "forward",
    "near",
    "parts",
    "is_pixelwise",
    "is_pixelwise_for_weights",
    "producer",
    "slides",
    "weight_gradient",
    "full_window",
]

FEWEST = 8
"""Least number of channels: with fewer, one word of 64 bits holds the bits under a whole window."""
WASTED = 1.2
"""Most pixels of the image per pixel of the output for which the weight gradient is pixel-wise."""
PIXELS = 256
"""Output pixels that a piece of work has."""
PIXELS_PER_TILE = 512
"""Output pixels, of several images, that share one pass over weights that exceed the L2 cache."""
BEYOND_L2 = 1 << 19
"""Number of float32 weights from which on they exceed the L2 cache."""
NEAR = 1 << 14
"""Float32 values of weights, or of a gradient, that are kept in the L1 and L2 caches at a time."""
SPARSE = 0.13
"""Density of spikes per unit of stride up to which a full window may have twice NEAR weights."""
GRAIN = 8
"""Outputs whose parts are not worth a thread of their own."""
MOST = 1 << 18
"""Channels, 64 at least, of the rows of pixels that a window reaches over."""


@lru_cache(maxsize=256)
def is_pixelwise(geometry: Geometry) -> bool:
    """Whether the spikes of each pixel are listed once for all windows, and not once for each window.

    Needs windows that overlap, and channels enough for a list of their own.
    """
    counted = geometry.image[1] * geometry.channels <= PLACES
    most = WORD if max(geometry.stride) > 1 else geometry.channels
    in_one = geometry.dilation[1] == 1 and FEWEST <= geometry.channels <= most
    return counted and in_one and _overlap(geometry)


def slides(geometry: Geometry, row: Row) -> bool:
    """Whether a window slides over columns, the sums of all that lie over one in registers."""
    return geometry.stride[1] == 1 < _unrolled(geometry, row)


def full_window(geometry: Geometry, row: Row, planes: int, density: float = 1.0) -> bool:
    """Whether the sum under a window is computed at once, and not row by row of the window.

    That needs all weights of a window in cache; at low density larger windows pay too.
    """
    column = geometry.kernel[0] * geometry.channels
    inputs = geometry.kernel[1] * column
    places = planes * -(-inputs // WORD) * WORD + geometry.image[1] * column
    most = NEAR if density > SPARSE * geometry.stride[1] else 2 * NEAR
    few = geometry.channels <= HALF and inputs * row.floats <= most
    return few and geometry.dilation[1] == 1 and places <= PLACES


@lru_cache(maxsize=256)
def is_pixelwise_for_weights(geometry: Geometry) -> bool:
    """:func:`is_pixelwise` for the weights' gradient, to which each pixel adds."""
    (height, width), (down, across) = geometry.image, geometry.output
    most = height * width <= WASTED * down * across and geometry.channels >= FEWEST
    return geometry.stride == (1, 1) and most and _overlap(geometry)


def _overlap(geometry: Geometry) -> bool:
    """Whether windows overlap in a row, and the rows that one reaches over are few and short."""
    down, across = geometry.reach
    rows = (down + 1) * (geometry.image[1] + across) * max(64, geometry.channels)
    return geometry.kernel[1] > geometry.stride[1] and rows < MOST


def forward(input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``[N, outputs, height, width]``, channels last."""
    height, width = geometry.output
    parts = -(-height // max(1, PIXELS // width, geometry.reach[0]))
    ready = _ready(*_about(input_, weight, geometry), -(-height // parts))
    call, out = ready.call(input_, weight, bias)
    call.run(ready.pieces)
    return out


def producer(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, steps: int
) -> Producer | None:
    """What :func:`forward` gives, yet to be computed, of images that are those of so many steps.

    None where pieces of all steps would not stay in the cache, or would list most pixels more than once.
    """
    ready = _ready_for_steps(*_about(input_, weight, geometry), steps, torch.get_num_threads())
    if ready is None:
        return None
    call, out = ready.call(input_, weight, bias)
    return Producer(call, ready.target, ready.pieces // steps, ready.length, out)


class _Ready(NamedTuple):
    """The sums' kernel, made ready for input and output of some size."""

    sized: Sized
    row: Row
    slides: bool
    """Whether its windows slide, whose weights are packed as they lie."""
    shape: tuple[int, ...]
    """Of what comes out, channels last."""
    pieces: int
    """Of work."""
    length: int
    """Numbers of one."""
    target: int
    """Which of the kernel's arguments says where it writes."""

    def call(self, input_: Planes, weight: Tensor, bias: Tensor | None) -> tuple[Call, Tensor]:
        """The call, and what it writes, as :func:`forward` gives it."""
        out = torch.empty(self.shape, dtype=torch.float32, device="cpu")
        if self.slides:
            table = product.packed(weight.flatten(1), self.row, input_.scales)
        else:
            table = product.packed(weight, self.row, input_.scales, self.sized.launcher is windows.forward)
        call = self.sized.call(bits=input_.bits, table=table, bias=bias, target=out)
        return call, out.permute(0, 3, 1, 2)


def _about(input_: Planes, weight: Tensor, geometry: Geometry) -> tuple[torch.Size, int, Geometry, Row, bool]:
    """What a kernel depends on: the shape of the bits, the outputs, …, and whether windows are whole."""
    bits, row = input_.bits.shape, panel(weight.shape[0])
    whole = full_window(geometry, row, bits[0], input_.density)
    return bits, weight.shape[0], geometry, row, whole


@lru_cache(maxsize=256)
def _ready_for_steps(
    bits: torch.Size, outputs: int, geometry: Geometry, row: Row, whole: bool, steps: int, threads: int
) -> _Ready | None:
    """For images of so many steps, rows at a time of which the sums at all steps stay in the cache."""
    images = bits[1] // geometry.image[0] // steps
    deep = rows_per_tile(images, outputs, geometry, steps, threads)
    if deep < max(1, min(geometry.output[0], geometry.reach[0])):
        return None
    if steps > 1 and not whole and _images_per_tile(bits[0], outputs, geometry) > 1:
        return None  # of which a piece is one image's
    return _ready(bits, outputs, geometry, row, whole, deep)


@lru_cache(maxsize=256)
def _ready(bits: torch.Size, outputs: int, geometry: Geometry, row: Row, whole: bool, deep: int) -> _Ready:
    """For `bits` of this shape, so many rows of the output at a time."""
    (planes, rows, _), (height, width) = bits, geometry.output
    images = rows // geometry.image[0]
    sizes = {"images": images, "planes": planes, "outputs": outputs, "deep": deep, **geometry.sizes}
    sliding = whole and slides(geometry, row)
    if whole:
        chosen = windows.forward
        sized = chosen.sized(**sizes, row=row, unrolled=geometry.unrolled if sliding else 0)
    else:
        chosen = kernels.forward
        per_tile = _images_per_tile(planes, outputs, geometry) if deep == height else 1
        sized = chosen.sized(**sizes, per_tile=per_tile, row=row)
    pieces, shape = images * -(-height // deep), (images, height, width, outputs)
    return _Ready(sized, row, sliding, shape, pieces, deep * width * outputs, chosen.place("target"))


def _images_per_tile(planes: int, outputs: int, geometry: Geometry) -> int:
    """Whole images that are done at a time: several, if they are small beside weights that lie far away."""
    pixels, taps = geometry.output[0] * geometry.output[1], geometry.kernel[0] * geometry.kernel[1]
    return max(1, PIXELS_PER_TILE // pixels) if planes * taps * geometry.channels * outputs > BEYOND_L2 else 1


def _unrolled(geometry: Geometry, row: Row) -> int:
    """Places of a row of the window whose sums registers hold: all that are done at a time, or 1.

    Of 32 registers of AVX-512 a vector of sums is one, of 16 others two or more.
    """
    most = 24 if row.compresses else 6
    return geometry.unrolled if row.vectors * geometry.unrolled <= most else 1


def near(density: float) -> int:
    """Floats of a gradient that are kept near at a time, so many of whose rows are taken."""
    return NEAR if density > product.NEAR_FROM else 2 * NEAR


def parts(rows: int, outputs: int, planes: int, geometry: Geometry, threads: int) -> product.Parts:
    """The parts of :func:`weight_gradient`, which are of rows of the kernel."""
    units = planes * -(-geometry.channels // 64) * geometry.kernel[0]
    images = rows // (geometry.output[0] * geometry.output[1])
    split = product.parts(rows, outputs, units * geometry.kernel[1], threads, images)
    return split._replace(down=min(split.down, units))


def weight_gradient(input_: Planes, rows: Tensor, geometry: Geometry, channels_last: bool = False) -> Tensor:
    """The gradient ``[outputs, channels, *kernel]`` at stride 1, from that of the output, a row a pixel.

    It lies as it is written here or, as the weights may too, with its `channels_last`.
    """
    outputs, planes = rows.shape[1], input_.bits.shape[0]
    row = panel(outputs)
    images = input_.bits.shape[1] // geometry.image[0]
    down, across = geometry.reach
    pitch = geometry.image[1] + across
    places = near(input_.density) // row.floats
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
    if channels_last and split.rows == planes == input_.factor == 1:
        found = out
    else:
        found = torch.empty(outputs, inputs // planes, dtype=torch.float32, device="cpu")
        kernels.per_tile(
            outputs,
            GRAIN,
            source=out,
            target=found,
            parts=split.rows,
            outputs=outputs,
            channels=geometry.channels,
            taps=geometry.kernel[0] * geometry.kernel[1],
            factor=float_bits(input_.factor),
            channels_last=int(channels_last),
            planes=planes,
        )
    if channels_last:
        return found.view(outputs, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2)
    return found.view(outputs, geometry.channels, *geometry.kernel)
