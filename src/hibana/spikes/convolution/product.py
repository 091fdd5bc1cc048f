"""The product of a convolution: its output and gradients per spike, and by torch."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from hibana.spikes import select
from hibana.spikes.bits import Planes, join_planes
from hibana.spikes.convolution import dense, kernels, pixels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.layer import Mode, needs_gradient
from hibana.spikes.linear import product
from hibana.spikes.linear.autograd import Gradients, Product, multiply
from hibana.spikes.provenance import Provenance
from hibana.spikes.simd.rows import panel

__all__ = ["ConvolutionProduct", "convolve", "product_key", "windows_of"]

GRAIN = 4
"""Smallest number of rows of pixels per thread."""


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    provenance: Provenance | None,
    mode: Mode,
) -> tuple[Tensor, str] | str:
    """The convolution of `images` per spike, with gradients, and how it was computed.

    Returns the reason if torch must or should compute it.

    Args:
        images: ``[N, channels, height, width]``.
        weight: ``[outputs, channels, height, width]``; without height for a 1-d convolution.
        bias: ``[outputs]``, or None.
        geometry: the sizes of the convolution.
        provenance: the gradient mask that a layer attached to `images`, or None.
        mode: ``"auto"`` or ``"events"``.
    """
    is_ordered = images.is_contiguous(memory_format=torch.channels_last)
    convolution = ConvolutionProduct(images.shape, weight, geometry)
    return multiply(convolution, images, weight, bias, provenance, is_ordered, mode)


class ConvolutionProduct(Product):
    """The convolution ``[N, outputs, height, width]`` of images ``[N, channels, height, width]``.

    The output and all gradients are channels last in memory. A row of the input is a row of pixels.
    """

    reads_replaced_weights = True

    def __init__(self, shape: torch.Size, weight: Tensor, geometry: Geometry) -> None:
        self.geometry, self.restricts_gradient = geometry, geometry.stride == (1, 1)
        key = product_key(shape[0], weight.shape, geometry)._replace(learning=needs_gradient(weight))
        super().__init__(shape, key, geometry.channels * geometry.image[1])

    def rows(self, numbers: Tensor) -> Tensor:
        """The images `numbers` as rows of pixels, ``[N * height, width * channels]``."""
        return numbers.permute(0, 2, 3, 1).contiguous().view(-1, self.row_length)

    def gradient_rows(self, gradient: Tensor) -> Tensor:
        """The output `gradient` as ``[pixels, outputs]``."""
        return gradient.permute(0, 2, 3, 1).contiguous().view(-1, self.key.outputs)

    def forward(self, input_: Planes, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output per spike, no view."""
        geometry, kernel = self.geometry, _kernel(weight)
        if pixels.is_pixelwise(geometry, len(kernel), input_.density):
            return pixels.forward(input_, kernel, bias, geometry).detach()
        windows = windows_of(input_.bits, geometry)
        out = product.forward(windows, input_.density, kernel, bias, input_.scales)
        return out.view(-1, *geometry.output, len(kernel)).permute(0, 3, 1, 2).detach()

    def weight_gradient(self, input_: Planes, rows: Tensor) -> Tensor:
        """The gradient of the weight per spike, from gradient `rows`."""
        geometry, density = self.geometry, input_.density
        if pixels.is_pixelwise_for_weights(geometry, density):
            return pixels.weight_gradient(input_, rows, geometry)
        windows = windows_of(input_.bits, geometry)
        flat = product.weight_gradient(windows, density, rows, self.key.inputs, input_.scales)
        return flat.view(-1, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2)

    def input_gradient(self, mask: product.GradientMask, weight: Tensor, rows: Tensor) -> Tensor:
        """The input gradient where `mask` is set, zero elsewhere, from gradient `rows`."""
        geometry, (height, width), row = self.geometry, self.geometry.image, panel(self.key.outputs)
        images, outputs = self.shape[0], self.key.outputs
        out = torch.empty(images, height, width, geometry.channels, dtype=torch.float32, device="cpu")
        table = product.pack_weights(_kernel(weight).reshape(outputs, -1), row)
        per_tile, tile_height, tile_width = geometry.tile(kernels.TILE)
        kernels.input_gradient(
            -(-images // per_tile) * -(-height // tile_height) * -(-width // tile_width),
            bits=mask.bits,
            table=table,
            gradient=rows,
            target=out,
            **geometry.sizes,
            images=images,
            outputs=outputs,
            per_tile=per_tile,
            tile_height=tile_height,
            tile_width=tile_width,
            row=row,
        )
        return out.permute(0, 3, 1, 2)

    def dense(self, numbers: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output by torch."""
        return dense.convolution(numbers, _kernel(weight), bias, self.geometry)

    def dense_gradients(
        self, numbers: Tensor | None, weight: Tensor, rows: Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """The gradients of images and weight by torch: see :meth:`Product.dense_gradients`."""
        return dense.gradients(self.shape, numbers, _kernel(weight), rows, self.geometry, needed)

    def constant_input_gradient(self, gradient: Tensor, weight: Tensor) -> None:
        """None: the dimensions of images are not steps."""


@lru_cache(maxsize=1024)
def product_key(images: int, weight: torch.Size, geometry: Geometry) -> select.Key:
    """Kind and sizes of a convolution of so many `images` by a `weight` of this shape."""
    inputs, numbers = prod(weight[1:]), images * geometry.channels * prod(geometry.image)
    counts = images * prod(geometry.output), inputs, weight[0]
    return select.Key("convolution", (images, geometry), *counts, numbers, pixels.lists_of_window(geometry))


def _kernel(weight: Tensor) -> Tensor:
    """`weight` as ``[outputs, channels, height, width]``; that of a 1-d convolution has height 1.

    The autograd node saves the weight itself, not this view, so that its backward reads ``weight.data`` as
    torch's backward does.
    """
    return weight if weight.ndim == 4 else weight.unsqueeze(2)


def windows_of(planes: Tensor, geometry: Geometry) -> Tensor:
    """Im2col: the bits under the window of each output pixel, ``[N * height * width, planes * words]``.

    `planes` are bits of images, ``[planes, N * image height, words]``; height and width are those of the
    output.
    """
    height, width = geometry.output
    items = planes.shape[1] // geometry.image[0] * height
    words = -(-geometry.channels * geometry.kernel[0] * geometry.kernel[1] // 64)
    windows = [torch.empty(items * width, words, dtype=torch.int64, device="cpu") for _ in planes]
    for bits, target in zip(planes, windows, strict=True):
        kernels.windows(items, GRAIN, bits=bits, target=target, **geometry.sizes)
    return join_planes(windows)
