"""The gradient of a convolution's weights on the processor's unit for matrices: as long at every density."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.events.convolution.amx import of_weights_kernels as kernels
from hibana.events.convolution.amx import sums
from hibana.events.convolution.amx.of_weights_kernels import CHUNK
from hibana.events.convolution.amx.tiles import BLOCK
from hibana.events.convolution.geometry import Geometry
from hibana.events.planes import Planes

__all__ = ["CHUNK", "layout", "split", "weight_gradient"]

NEAR = 1 << 18
"""Bytes of images that are kept near at a time."""


def layout(images: int, geometry: Geometry, threads: int) -> sums.Layout:
    """How the pixels lie that some rows of the output meet, but each channel in a row."""
    return sums.layout(images, geometry, threads, NEAR)


class Split(NamedTuple):
    """The parts of a sum over all pixels."""

    parts: int
    items: int
    per_part: int


@lru_cache(maxsize=256)
def split(images: int, geometry: Geometry, threads: int) -> Split:
    """For so many images and threads."""
    items = layout(images, geometry, threads).pieces(images, geometry)
    per_part = -(-items // threads)
    return Split(-(-items // per_part), items, per_part)


@lru_cache(maxsize=256)
def _pixels(images: int, geometry: Geometry, threads: int) -> int:
    """How many are met, and those after them that a tile may read."""
    lying = layout(images, geometry, threads)
    last: int = max(lying.taps.tolist()) + lying.deep * lying.pitch * lying.together + BLOCK
    down, across = geometry.stride
    held = down * across * lying.tall * lying.pitch * lying.together
    return -(-max(last, held) // 64) * 64


def weight_gradient(input_: Planes, rows: Tensor, geometry: Geometry) -> Tensor | None:
    """The gradient ``[outputs, channels, *kernel]`` from that of the output, a row a pixel.

    None if that is not finite, or about as large as no number of bfloat16 is.
    """
    outputs, images = rows.shape[1], input_.bits.shape[1] // geometry.image[0]
    threads = torch.get_num_threads()
    found, lying = split(images, geometry, threads), layout(images, geometry, threads)._asdict()
    shape = found.parts, outputs, geometry.channels, *geometry.kernel
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    strange = torch.empty(found.parts, dtype=torch.uint8, device="cpu")
    kernels.weight_gradient(
        found.parts,
        bits=input_.bits,
        gradient=rows,
        strange=strange,
        targets=out,
        **geometry.sizes,
        images=images,
        outputs=outputs,
        **{name: size for name, size in lying.items() if name != "across"},
        items=found.items,
        per_part=found.per_part,
        pixels=_pixels(images, geometry, threads),
        planes=input_.bits.shape[0],
    )
    if any(strange.tolist()):
        return None
    total = out[0] if found.parts == 1 else out.sum(0)
    return total if input_.factor == 1.0 else total * input_.factor
