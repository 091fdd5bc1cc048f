"""PyTorch's dense convolution of channels-last images, and its gradients.

A window of one pixel at a stride meets some of the pixels. Of few channels these are convolved by themselves
where a backward follows: with all of them torch 2.13 (oneDNN) writes beyond its memory there, of up to 12.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hibana.spikes.convolution.geometry import Geometry, Pair

__all__ = ["channels_last", "convolution", "gradients", "lies_last", "sampled"]

How = tuple[Pair, Pair, Pair]
"""Stride, padding and dilation."""
SAFE = 16
"""Channels from which on torch's backward at a stride does not write beyond its memory."""
CLOSE: How = ((1, 1), (0, 0), (1, 1))


def channels_last(images: Tensor) -> Tensor:
    """`images` channels last in memory, with strides that say so even for one channel."""
    if lies_last(images):
        return images
    last = images.permute(0, 2, 3, 1)
    return last.flatten().view(last.shape).permute(0, 3, 1, 2)


def lies_last(images: Tensor) -> bool:
    """Whether `images` are channels last in memory, with strides that say so even for one channel."""
    if images.ndim != 4:
        return False
    _, channels, height, width = images.shape
    return channels > 1 and images.stride() == (height * width * channels, 1, width * channels, channels)


def sampled(images: Tensor, stride: Pair) -> Tensor:
    """The pixels that a window of one pixel meets, channels last."""
    return channels_last(images[:, :, :: stride[0], :: stride[1]])


def convolution(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Torch's convolution of `images`, ``[N, channels, height, width]``; the result is channels last."""
    how = geometry.stride, geometry.padding, geometry.dilation
    return functional.conv2d(channels_last(images), weight, bias, *how)[:, :, : geometry.output[0]]


def gradients(
    shape: torch.Size,
    numbers: Tensor | None,
    weight: Tensor,
    rows: Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Torch's gradients of images and weights, those that are `wanted`; `numbers` of the images may be None
    for the former.
    """
    grad = rows.view(shape[0], *geometry.output, len(weight)).permute(0, 3, 1, 2)
    if geometry.skips and geometry.channels < SAFE:
        return _gradients_of_sampled(shape, numbers, weight, geometry.whole(grad), geometry, wanted)
    if numbers is None:  # only the memory format of the images is read
        numbers = torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
    how = geometry.stride, geometry.padding, geometry.dilation
    return _torchs(geometry.whole(grad), channels_last(numbers), weight, how, wanted)


def _gradients_of_sampled(
    shape: torch.Size,
    numbers: Tensor | None,
    weight: Tensor,
    grad: Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The same for windows of one pixel at a stride: pixels between them get no gradient."""
    down, across = geometry.stride
    if numbers is None:
        sampled_ = grad.new_empty(shape[0], *grad.shape[2:], shape[1]).permute(0, 3, 1, 2)
    else:
        sampled_ = sampled(numbers, geometry.stride)
    of_sampled, of_weights = _torchs(grad, sampled_, weight, CLOSE, wanted)
    if of_sampled is None:
        return None, of_weights
    of_images = grad.new_zeros(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    of_images[:, :, ::down, ::across] = of_sampled
    return of_images, of_weights


def _torchs(
    grad: Tensor, images: Tensor, weight: Tensor, how: How, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    of_images, of_weights, _ = torch.ops.aten.convolution_backward(
        grad, images, weight, None, *how, False, [0, 0], 1, [*wanted, False]
    )
    return of_images, of_weights
