"""Random changes of training images and recordings of events, one batch at a time.

All random numbers come from torch, so the seed determines the result.
"""

import torch
from torch import Tensor
from torch.nn import functional

SHIFT_DIVISOR = 8
"""Recordings move by at most their side divided by this."""


def check(augmentation: str | None, shape: tuple[int, ...], *, sequential: bool) -> None:
    """Checks that samples can be augmented.

    Args:
        augmentation: words as for :func:`augment_batch`; ``None`` is always accepted.
        shape: shape of one step of a sample.
        sequential: whether samples have a time axis.

    Raises:
        ValueError: if samples are not images, or `augmentation` contains ``roll`` and they have no time axis.
    """
    words = {*(augmentation or "none").split("-")} - {"none"}
    if words and len(shape) < 2:
        raise ValueError(f"augment must be none for inputs that are no images, got {augmentation!r}")
    if "roll" in words and not sequential:
        raise ValueError(f"augment must be none, flip or shift for images without time, got {augmentation!r}")


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
        is_mirrored = torch.rand(len(images), dtype=torch.float32, device=images.device) < 0.5
        images = torch.where(_per_image(is_mirrored, images), images.flip(-1), images)
    if "shift" in words:
        images = _move_recordings(images, wrap=False) if images.ndim == 5 else _shift_images(images)
    if "roll" in words:
        images = _move_recordings(images, wrap=True)
    return images


def _shift_images(images: Tensor) -> Tensor:
    """Moves each image by -1, 0 or 1 pixel along each axis, and fills with zeros."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, (1, 1, 1, 1))
    choices = torch.randint(0, 9, [len(images)], dtype=torch.int64, device=images.device)
    shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    images = images.clone()
    for choice, candidate in enumerate(shifted):
        images = torch.where(_per_image(choices == choice, images), candidate, images)
    return images


def _move_recordings(recordings: Tensor, *, wrap: bool) -> Tensor:
    """Moves each recording by up to an eighth of the side along height and width.

    Args:
        recordings: ``[batch, ..., height, width]``.
        wrap: move pixels around the edges; otherwise fill with zeros.
    """
    for axis in (-2, -1):
        side = recordings.shape[axis]
        largest = max(1, side // SHIFT_DIVISOR)
        size = [len(recordings), 1]
        shift = torch.randint(-largest, largest + 1, size, dtype=torch.int64, device=recordings.device)
        origin = torch.arange(side, dtype=torch.int64, device=recordings.device) - shift  # [batch, side]
        shape = [len(recordings), *[1] * (recordings.ndim - 1)]
        shape[axis] = side
        moved = recordings.gather(axis, (origin % side).view(shape).expand(recordings.shape))
        recordings = moved if wrap else moved * ((origin >= 0) & (origin < side)).view(shape)
    return recordings


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Returns `values` ``[batch]`` in a shape that broadcasts over `images`."""
    return values.view(-1, *[1] * (images.ndim - 1))
