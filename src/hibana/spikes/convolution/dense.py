"""PyTorch's dense convolution of channels-last images, and its gradients.

Windows of one pixel at a stride above 1 read only some pixels. If images have few channels, only these pixels
are passed to torch in a call with a backward: with all pixels, the backward of torch 2.13 (oneDNN) writes
outside of its memory, measured with up to 12 channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hibana.spikes.convolution.geometry import Geometry, Pair

__all__ = ["channels_last", "convolution", "gradients", "is_channels_last", "sample_pixels"]

SAFE_CHANNELS = 16
"""Channels from which on torch's backward at a stride does not write outside of its memory."""


def channels_last(images: Tensor) -> Tensor:
    """`images` in channels-last memory order, with the strides of that order also for one channel."""
    if is_channels_last(images):
        return images
    last = images.permute(0, 2, 3, 1)
    return last.flatten().view(last.shape).permute(0, 3, 1, 2)


def is_channels_last(images: Tensor) -> bool:
    """Whether `images` have channels-last strides; False for one channel, whose strides are ambiguous."""
    if images.ndim != 4:
        return False
    _, channels, height, width = images.shape
    return channels > 1 and images.stride() == (height * width * channels, 1, width * channels, channels)


def sample_pixels(images: Tensor, stride: Pair) -> Tensor:
    """The pixels of `images` that windows of one pixel at this `stride` read, channels last."""
    return channels_last(images[:, :, :: stride[0], :: stride[1]])


def convolution(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Torch's convolution of `images`, ``[N, channels, height, width]``; the result is channels last."""
    steps = geometry.stride, geometry.padding, geometry.dilation
    return functional.conv2d(channels_last(images), weight, bias, *steps)[:, :, : geometry.output[0]]


def gradients(
    shape: torch.Size,
    numbers: Tensor | None,
    weight: Tensor,
    rows: Tensor,
    geometry: Geometry,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Torch's gradients of images and weights; None for a gradient that is not `needed`.

    Args:
        shape: the shape of the images, ``[N, channels, height, width]``.
        numbers: the images; may be None if the weight gradient is not needed.
        weight: ``[outputs, channels, height, width]``.
        rows: gradient of the output, ``[pixels, outputs]``.
        geometry: the sizes of the convolution.
        needed: whether to compute the gradient of the images, and of the weights.
    """
    if numbers is None:  # torch reads only the memory format of the images
        numbers = torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
    grad = geometry.uncropped(rows.view(shape[0], *geometry.output, len(weight)).permute(0, 3, 1, 2))
    steps = geometry.stride, geometry.padding, geometry.dilation
    to_images, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, channels_last(numbers), weight, None, *steps, False, [0, 0], 1, [*needed, False]
    )
    return to_images, to_weight
