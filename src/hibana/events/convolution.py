"""The convolution of spikes as an autograd node: the product of the bits under the window and the weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

from hibana.events import product
from hibana.events.kernels import address, panel
from hibana.events.support import Support, probe
from hibana.native import arguments, run

__all__ = ["Geometry", "convolution", "forward", "rows_of"]

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes of a convolution, (down, across)."""

    channels: int
    image: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        down, across = (
            (self.image[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1)
            // self.stride[d]
            + 1
            for d in (0, 1)
        )
        return down, across


def rows_of(images: Tensor) -> Tensor:
    """``[N * height, width * channels]`` of images ``[N, channels, height, width]``, channels last."""
    last = images.permute(0, 2, 3, 1).contiguous()
    return last.view(last.shape[0] * last.shape[1], last.shape[2] * last.shape[3])


def _windows(bits: Tensor, geometry: Geometry) -> Tensor:
    """For each output pixel the bits under the window, ``[N * height * width, words]``."""
    height, width = geometry.output
    items = bits.shape[0] // geometry.image[0] * height
    inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    out = torch.empty(items * width, -(-inputs // 64), dtype=torch.int64)
    values = [bits.data_ptr(), out.data_ptr(), geometry.channels, *geometry.image, *geometry.kernel]
    values += [*geometry.stride, *geometry.padding, *geometry.dilation, height, width]
    run(address("convolution", "windows", 64), items, arguments(values), GRAIN)
    return out


GRAIN = 4
"""Rows of pixels that are not worth a thread of their own."""


def forward(bits: Tensor, share: float, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``[N, outputs, height, width]``, channels last."""
    flat = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
    out, _ = product.forward(_windows(bits, geometry), share, flat, bias)
    return out.view(-1, *geometry.output, weight.shape[0]).permute(0, 3, 1, 2)


def _input_gradient(support: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """The gradient ``[N, channels, height, width]``, channels last, where `support` has bits; 0 elsewhere."""
    outputs = weight.shape[0]
    row = panel(outputs)
    taps = functional.pad(weight.permute(2, 3, 0, 1), (0, 0, 0, -outputs % row)).reshape(
        -1, geometry.channels
    )
    out = torch.empty(support.shape[0], geometry.image[1], geometry.channels)
    table = product.packed(taps, row)
    values = [support.data_ptr(), table.data_ptr(), grad.data_ptr(), out.data_ptr()]
    values += [geometry.channels, *geometry.image, outputs, *geometry.kernel, *geometry.padding]
    values += [*geometry.dilation, *geometry.output]
    run(address("convolution", "input_gradient", row), len(support), arguments(values), GRAIN)
    return out.view(-1, *geometry.image, geometry.channels).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """Keeps the bits of the spikes, not the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        bits: Tensor,
        share: float,
        support: Support | None,
        geometry: Geometry,
    ) -> Tensor:
        ctx.share, ctx.below, ctx.geometry, ctx.shape = share, support, geometry, images.shape
        ctx.save_for_backward(bits, weight)
        return forward(bits, share, weight, bias, geometry).detach()  # not a view, which has a node more

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        bits, weight = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        rows = grad.permute(0, 2, 3, 1).contiguous().view(-1, len(weight))
        to_images = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            length = geometry.channels * geometry.image[1]
            used = (
                product.used_bits(ctx.below, bits, length, ctx.share) if geometry.stride == (1, 1) else None
            )
            if used is None:
                how = geometry.stride, geometry.padding, geometry.dilation
                to_images = conv2d_input(ctx.shape, weight, grad, *how)  # type: ignore[no-untyped-call]
            else:
                to_images = _input_gradient(used, weight, rows, geometry)
        if ctx.needs_input_grad[1]:
            inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
            flat, to_bias = product.weight_gradient(
                _windows(bits, geometry), ctx.share, rows, inputs, ctx.needs_input_grad[2]
            )
            to_weight = flat.view(len(weight), *geometry.kernel, geometry.channels).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_images, to_weight, to_bias, None, None, None, None, None


def convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    share: float,
    support: Support | None,
    geometry: Geometry,
) -> Tensor:
    """The convolution of images of 0 and 1 whose bits are known, ``[N, outputs, height, width]``."""
    leaf = probe() if support is not None else None
    apply: Any = _Convolution.apply  # torch leaves it without types
    out: Tensor = apply(images, weight, bias, leaf, bits, share, support, geometry)
    return out
