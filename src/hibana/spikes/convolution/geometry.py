"""The geometry of a convolution: sizes of image, kernel and output; stride, padding, dilation."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

__all__ = ["Geometry", "Pair", "has_image_window"]

Pair = tuple[int, int]
"""A size or step as (down, across)."""
TILE_WIDTH = 32
"""Most pixels in a row of a tile."""


class Geometry(NamedTuple):
    """Sizes of a convolution in pixels, each as (down, across)."""

    channels: int
    image: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    cropped_output: Pair | None = None
    """Height and width of the output if fewer windows are computed than fit; None if all are."""

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        if self.cropped_output is not None:
            return self.cropped_output
        fields = self.image, self.kernel, self.stride, self.padding, self.dilation
        down, across = (
            (image + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for image, kernel, stride, padding, dilation in zip(*fields, strict=True)
        )
        return down, across

    @property
    def reach(self) -> Pair:
        """Distance from the first to the last pixel of a window."""
        (down, across), (height, width) = self.dilation, self.kernel
        return down * (height - 1), across * (width - 1)

    def tile(self, most: int) -> tuple[int, int, int]:
        """A tile of at most `most` pixels: number of images, and height and width in pixels.

        It has several images only if it covers them completely, and one row if the dilation down is not 1.
        """
        tile_width = -(-self.image[1] // -(-self.image[1] // TILE_WIDTH))
        tile_height = min(most // tile_width, self.image[0]) if self.dilation[0] == 1 else 1
        return (
            (most // (tile_height * tile_width) if (tile_height, tile_width) == self.image else 1),
            tile_height,
            tile_width,
        )

    def uncropped(self, grad: Tensor) -> Tensor:
        """The gradient `grad` of the output, padded with zeros for the rows of :attr:`cropped_output`."""
        missing = self._replace(cropped_output=None).output[0] - self.output[0]
        return functional.pad(grad, (0, 0, 0, missing)) if missing else grad

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


def has_image_window(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether any window over a line of `size` pixels covers a pixel of the image."""
    last = size + 2 * padding - dilation * (kernel - 1)
    return any(
        padding <= start + tap * dilation < padding + size
        for start in range(0, last, stride)
        for tap in range(kernel)
    )
