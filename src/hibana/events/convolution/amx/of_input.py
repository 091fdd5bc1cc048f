"""The gradient of a convolution's input, everywhere, on the processor's unit for matrices."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.events.convolution.amx import of_input_kernels as kernels
from hibana.events.convolution.amx.sums import NEAR, SMALL, gone_through
from hibana.events.convolution.amx.tiles import BLOCK, BLOCKS, PARTS, TILE
from hibana.events.convolution.geometry import Geometry
from hibana.events.convolution.pieces import PIECES, rows_at_once
from hibana.events.convolution.strided import met
from hibana.native import SHORT
from hibana.native.amx import SIDE

__all__ = ["PRODUCTS", "input_gradient", "layout"]

PRODUCTS = PARTS * (PARTS + 1) // 2
"""Of parts that are computed of one product."""


class Layout(NamedTuple):
    """How the pixels of the output lie that some rows of the input meet, for ``input_gradient``."""

    deep: int
    """Rows of the input, of each remainder by the stride."""
    tall: int
    """Rows of the output."""
    pitch: int
    """Pixels from one row to the next."""
    across: int
    """Those of them that are gone through."""
    together: int
    """Images whose pixels lie side by side."""
    above: int
    """Rows that are met before that in which a row of the input would lie."""
    before: int
    """As many pixels of a row."""
    near: int
    """Numbers of one block of channels of all pixels, in one part."""
    taps: Tensor
    """At which pixel what lies under each place of the windows begins; in order of the remainders."""
    firsts: Tensor
    """The first tap of each remainder, and the number of all."""
    order: Tensor
    """Which taps they are."""

    def pieces(self, images: int, geometry: Geometry) -> int:
        """Of work."""
        return -(-images // self.together) * -(-_steps(geometry)[0] // self.deep)

    def tiles(self) -> int:
        """Of pixels of one remainder of a piece."""
        return -(-self.deep * self.across * self.together // SIDE)


def _steps(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the input of one remainder, the first of which are most."""
    down, across = (-(-size // step) for size, step in zip(geometry.image, geometry.stride, strict=True))
    return down, across


@lru_cache(maxsize=256)
def layout(images: int, outputs: int, geometry: Geometry, threads: int) -> Layout:
    """For so many images, channels of the output and threads."""
    down, across = met(geometry, 0), met(geometry, 1)
    (height, width), out_width = _steps(geometry), geometry.output[1]
    above, below = _reach(down)
    before, beyond = _reach(across)
    # zeros between two rows are those after the one and before the other
    pitch = max(width, out_width + max(before, width - 1 + beyond - (out_width - 1), 0))
    together = SIDE if images >= SIDE and height * pitch <= SMALL else 1
    row = pitch * together * -(-outputs // BLOCK) * BLOCK * PARTS * SHORT.size
    shared = -(-height * images // (PIECES * threads * together))
    deep = rows_at_once(height, NEAR // row - above - below, shared, pitch * together)
    tall = deep + above + below
    taps, order, firsts = list[int](), list[int](), [0]
    for remainder_down in range(geometry.stride[0]):
        for remainder_across in range(geometry.stride[1]):
            for of_down, i, further_down in down:
                for of_across, j, further_across in across:
                    if (of_down, of_across) == (remainder_down, remainder_across):
                        taps.append(((above + further_down) * pitch + before + further_across) * together)
                        order.append(i * geometry.kernel[1] + j)
            firsts.append(len(taps))
    near = ((tall * pitch + before + beyond) * together + BLOCKS * SIDE) * BLOCK
    lists = (torch.tensor(each, dtype=torch.int64, device="cpu") for each in (taps, firsts, order))
    through = gone_through(width, pitch, together)
    return Layout(deep, tall, pitch, through, together, above, before, near, *lists)


def _reach(met: list[tuple[int, int, int]]) -> tuple[int, int]:
    """How far back, and how far on, pixels of the output are met."""
    further = [each for _, _, each in met]
    return max(0, -min(further)), max(0, *further)


def input_gradient(rows: Tensor, weight: Tensor, images: int, geometry: Geometry) -> Tensor | None:
    """``[images, channels, height, width]``, channels last, from the output's gradient ``[pixels, outputs]``.

    None if that or a weight is not finite, or about as large as no number of bfloat16 is.
    """
    outputs, channels = weight.shape[:2]
    each = layout(images, outputs, geometry, torch.get_num_threads())
    tiles, blocks = -(-channels // SIDE), -(-outputs // BLOCK)
    pieces = each.pieces(images, geometry)
    strange = torch.empty(tiles * blocks + pieces, dtype=torch.uint8, device="cpu")
    windows = geometry.kernel[0] * geometry.kernel[1]
    table = torch.empty(tiles * windows * blocks * PARTS * TILE, dtype=torch.int16, device="cpu")
    last = weight.is_contiguous(memory_format=torch.channels_last)
    kernels.pack(
        tiles * blocks,
        source=weight if last else weight.contiguous(),
        order=each.order,
        target=table,
        strange=strange,
        outputs=outputs,
        channels=channels,
        taps=windows,
        channels_last=int(last),
    )
    out = torch.empty(images, *geometry.image, channels, dtype=torch.float32, device="cpu")
    sizes = {name: value for name, value in each._asdict().items() if name != "order"}
    kernels.input_gradient(
        pieces,
        gradient=rows,
        table=table,
        strange=strange[tiles * blocks :],
        target=out,
        **geometry.sizes,
        images=images,
        outputs=outputs,
        **sizes,
    )
    return None if any(strange.tolist()) else out.permute(0, 3, 1, 2)
