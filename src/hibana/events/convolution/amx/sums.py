"""Sums of a convolution on the processor's unit for matrices: as long however many spikes there are."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.events.convolution.amx import sums_kernels as kernels
from hibana.events.convolution.amx.tiles import BLOCK, PARTS, TILE
from hibana.events.convolution.geometry import Geometry
from hibana.events.convolution.pieces import PIECES, rows_at_once, rows_together
from hibana.events.planes import Planes
from hibana.loop.producer import Producer
from hibana.native import SHORT, Call, Sized
from hibana.native.amx import SIDE

__all__ = [
    "NEAR",
    "SMALL",
    "Layout",
    "forward",
    "gone_through",
    "layout",
    "producer",
]

NEAR = 1 << 20
"""Bytes of images that are kept near at a time."""
SMALL = 160
"""Pixels of an image's output of which too few tiles would be full; of several they lie side by side."""


class Layout(NamedTuple):
    """How the pixels lie that some rows of the output meet, for :func:`sums_kernels.forward`."""

    deep: int
    """Rows of the output."""
    tall: int
    """Rows of pixels, of each remainder by the stride."""
    pitch: int
    """Pixels from one row to the next."""
    across: int
    """Those of them that are gone through."""
    together: int
    """Images whose pixels lie side by side."""
    taps: Tensor
    """At which pixel what lies under each place of the windows begins."""

    def pieces(self, images: int, geometry: Geometry) -> int:
        """Of work."""
        return -(-images // self.together) * -(-geometry.output[0] // self.deep)

    def sizes(self) -> tuple[int, ...]:
        """All but the taps."""
        return self[:-1]

    def tiles(self) -> int:
        """Of pixels of a piece."""
        return -(-self.deep * self.across * self.together // SIDE)


@lru_cache(maxsize=256)
def layout(images: int, geometry: Geometry, threads: int, near: int = NEAR, rows: int = 0) -> Layout:
    """For so many images and threads, of which as many bytes are near at a time; or so many `rows`."""
    down, across = geometry.stride
    (height, width), margin = geometry.output, geometry.padding[1]
    padded = geometry.image[1] + 2 * margin
    # at a stride of 1 the zeros before a row are those after the one before
    pitch = max(padded - margin, width) if across == 1 else -(-padded // across)
    together = SIDE if images >= SIDE and height * pitch <= SMALL else 1
    row = down * across * pitch * together * _blocks(geometry) * BLOCK * SHORT.size
    most = near // row - geometry.reach[0] // down
    shared = -(-height * images // (PIECES * threads * together))
    deep = rows or rows_at_once(height, most, shared, pitch * together)
    tall = deep + geometry.reach[0] // down
    remainder = tall * pitch
    taps = [
        ((i % down * across + j % across) * remainder + i // down * pitch + j // across) * together
        for i in range(0, geometry.kernel[0] * geometry.dilation[0], geometry.dilation[0])
        for j in range(0, geometry.kernel[1] * geometry.dilation[1], geometry.dilation[1])
    ]
    across = gone_through(width, pitch, together)
    return Layout(deep, tall, pitch, across, together, torch.tensor(taps, dtype=torch.int64, device="cpu"))


def gone_through(width: int, pitch: int, together: int) -> int:
    """Pixels of a row that make whole tiles of `width` alone, if all of `pitch` are not fewer; else these."""
    alone = width if together == SIDE else -(-width // SIDE) * SIDE
    return min(alone, pitch)


def forward(input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``[N, outputs, height, width]``, channels last."""
    images = input_.bits.shape[1] // geometry.image[0]
    each = layout(images, geometry, torch.get_num_threads())
    call, out = _call(input_, weight, bias, geometry, each)
    call.run(each.pieces(images, geometry))
    return out


def producer(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, steps: int
) -> Producer | None:
    """What :func:`forward` gives, yet to be computed, of images that are those of so many steps.

    None where a piece of one step is not a stretch of it, or pieces of all would not stay in the cache.
    """
    outputs, images = weight.shape[0], input_.bits.shape[1] // geometry.image[0]
    threads = torch.get_num_threads()
    rows = rows_together(images // steps, outputs, geometry, steps, threads)
    each = layout(images, geometry, threads, NEAR, rows)
    if not rows or each.together > 1:
        return None
    call, out = _call(input_, weight, bias, geometry, each)
    pieces, length = each.pieces(images // steps, geometry), rows * geometry.output[1] * outputs
    return Producer(call, kernels.forward.place("target"), pieces, length, out)


def _call(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, each: Layout
) -> tuple[Call, Tensor]:
    """The kernel's call for rows that lie so, and where it writes, ``[N, outputs, height, width]``."""
    outputs, (planes, rows, _) = weight.shape[0], input_.bits.shape
    images = rows // geometry.image[0]
    out = torch.empty(images, *geometry.output, outputs, dtype=torch.float32, device="cpu")
    table = _packed(weight if input_.factor == 1.0 else weight * input_.factor, geometry)
    sized = _sized(each.sizes(), images, outputs, planes, geometry)
    call = sized.call(bits=input_.bits, table=table, bias=bias, taps=each.taps, target=out)
    return call, out.permute(0, 3, 1, 2)


@lru_cache(maxsize=256)
def _sized(lying: tuple[int, ...], images: int, outputs: int, planes: int, geometry: Geometry) -> Sized:
    """The kernel for images that lie as a :class:`Layout` of these sizes says."""
    return kernels.forward.sized(
        images=images,
        outputs=outputs,
        planes=planes,
        **geometry.sizes,
        **dict(zip(Layout._fields, lying, strict=False)),
    )


def _packed(weight: Tensor, geometry: Geometry) -> Tensor:
    """`weight` in tiles."""
    outputs, taps, blocks = weight.shape[0], geometry.kernel[0] * geometry.kernel[1], _blocks(geometry)
    tiles = -(-outputs // SIDE)
    table = torch.empty(tiles * taps * blocks * PARTS * TILE, dtype=torch.int16, device="cpu")
    last = weight.is_contiguous(memory_format=torch.channels_last)
    sized = _packing(outputs, geometry.channels, taps, last)
    sized(tiles * blocks, source=weight if last else weight.contiguous(), target=table)
    return table


@lru_cache(maxsize=256)
def _packing(outputs: int, channels: int, taps: int, last: bool) -> Sized:
    """The kernel that puts such weights in tiles; whether their channels lie `last`."""
    return kernels.pack.sized(outputs=outputs, channels=channels, taps=taps, channels_last=int(last))


def _blocks(geometry: Geometry) -> int:
    """Of channels of a pixel."""
    return -(-geometry.channels // BLOCK)
