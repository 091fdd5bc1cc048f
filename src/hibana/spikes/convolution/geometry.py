"""The geometry of a convolution: sizes of image, kernel and output, stride, padding, dilation."""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

__all__ = ["Geometry", "Pair", "meets"]

Pair = tuple[int, int]
UNROLLED = 5
"""Places of a row of the window that are unrolled, at most."""
WIDE = 32
"""Pixels of a row of a tile, at most."""


class Geometry(NamedTuple):
    """Sizes of a convolution, (down, across)."""

    channels: int
    image: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    made: Pair | None = None
    """Height and width of the output, where fewer windows are computed than fit."""

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        return _output(self)

    @property
    def reach(self) -> Pair:
        """Distance from the first to the last pixel of a window, (down, across)."""
        (down, across), (height, width) = self.dilation, self.kernel
        return down * (height - 1), across * (width - 1)

    @property
    def unrolled(self) -> int:
        """Places of a row of the window that are unrolled: all, if few and not dilated, or 1."""
        return self.kernel[1] if self.kernel[1] <= UNROLLED and self.dilation[1] == 1 else 1

    def tile(self, most: int) -> tuple[int, int, int]:
        """A tile of at most `most` pixels: images, and pixels of each, down and across; one row if dilated
        downwards.
        """
        wide = -(-self.image[1] // -(-self.image[1] // WIDE))
        deep = min(most // wide, self.image[0]) if self.dilation[0] == 1 else 1
        return (most // (deep * wide) if (deep, wide) == self.image else 1), deep, wide

    def whole(self, grad: Tensor) -> Tensor:
        """`grad` of the output, padded with zeros for the rows that were not computed."""
        missing = self._replace(made=None).output[0] - self.output[0]
        return functional.pad(grad, (0, 0, 0, missing)) if missing else grad

    @property
    def skips(self) -> bool:
        """Whether windows of one pixel at a stride leave pixels out."""
        return self.kernel == (1, 1) and self.padding == (0, 0) and self.stride != (1, 1)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes as arguments of the kernels."""
        sizes = {"channels": self.channels, "height": self.image[0], "width": self.image[1]}
        for name, (height, width) in (("kernel", self.kernel), ("out", self.output)):
            sizes |= {f"{name}_height": height, f"{name}_width": width}
        steps = ("stride", self.stride), ("padding", self.padding), ("dilation", self.dilation)
        for name, (down, across) in steps:
            sizes |= {f"{name}_down": down, f"{name}_across": across}
        return sizes


@lru_cache(maxsize=256)
def _output(of: Geometry) -> Pair:
    if of.made is not None:
        return of.made
    down, across = (
        (of.image[d] + 2 * of.padding[d] - of.dilation[d] * (of.kernel[d] - 1) - 1) // of.stride[d] + 1
        for d in (0, 1)
    )
    return down, across


def meets(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether some window meets one of `size` pixels in a row, and not the padding alone."""
    last = size + 2 * padding - dilation * (kernel - 1)
    return any(
        padding <= begin + tap * dilation < padding + size
        for begin in range(0, last, stride)
        for tap in range(kernel)
    )
