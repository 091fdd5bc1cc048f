"""Random changes of training images and recordings of events, one batch at a time.

All random numbers come from torch, so the seed determines the result.
"""

import torch
from torch import Tensor

SHIFT_DIVISOR = 8
"""Recordings move by at most their side divided by this."""


def augment_batch(images: Tensor, augmentation: str) -> Tensor:
    """Returns `images`, each changed at random.

    Args:
        images: images ``[batch, ..., height, width]`` or recordings ``[batch, T, channels, height, width]``.
        augmentation: words joined by ``-``. ``flip`` mirrors left and right with probability 1/2. ``shift``
            moves images by up to one pixel and recordings by up to an eighth of the side along each axis, and
            fills with zeros. ``roll`` moves recordings by as much, around the edges. ``none`` does nothing.

    Source: Li, Kim, Park, Geller & Panda (2022), *Neuromorphic data augmentation for training spiking neural
    networks*.
    """
    words = {*augmentation.split("-")} - {"none"}
    if not words:
        return images
    if "flip" in words:
        shape = len(images), *[1] * (images.ndim - 1)  # one number for each image
        is_mirrored = torch.rand(shape, dtype=torch.float32, device=images.device) < 0.5
        images = torch.where(is_mirrored, images.flip(-1), images)
    if "shift" in words:
        images = _move(images, wrap=False)
    if "roll" in words:
        images = _move(images, wrap=True)
    return images


def _move(images: Tensor, *, wrap: bool) -> Tensor:
    """Moves each image along height and width: by up to one pixel, or a recording by an eighth of the side.

    Args:
        images: images ``[batch, ..., height, width]`` or recordings ``[batch, T, channels, height, width]``.
        wrap: move pixels around the edges; otherwise fill with zeros.
    """
    size, device = (len(images), 1), images.device
    if images.ndim == 5:
        largest = [max(1, side // SHIFT_DIVISOR) for side in images.shape[-2:]]
        shifts = [torch.randint(-n, n + 1, size, dtype=torch.int64, device=device) for n in largest]
    else:
        choices = torch.randint(0, 9, size, dtype=torch.int64, device=device)  # one of 3x3 places
        shifts = [1 - choices // 3, 1 - choices % 3]
    for axis, shift in zip((-2, -1), shifts, strict=True):
        side = images.shape[axis]
        origin = torch.arange(side, dtype=torch.int64, device=device) - shift  # [batch, side]
        shape = [len(images), *[1] * (images.ndim - 1)]
        shape[axis] = side
        moved = images.gather(axis, (origin % side).view(shape).expand(images.shape))
        images = moved if wrap else moved * ((origin >= 0) & (origin < side)).view(shape)
    return images
