"""Random changes of training images and recordings of events, one batch at a time.

All random numbers come from torch, so results follow from the seed.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augment_batch", "check"]

REACH = 8
"""Recordings move by at most the side divided by this."""


def check(how: str | None, shape: tuple[int, ...], *, sequential: bool) -> None:
    """Checks that samples can be augmented.

    Args:
        how: see :func:`augment_batch`; ``None`` checks nothing.
        shape: shape of one step of a sample.
        sequential: whether samples have a time axis.

    Raises:
        ValueError: if samples are not images, or `how` contains ``roll`` and they have no time axis.
    """
    words = {*(how or "none").split("-")} - {"none"}
    if words and len(shape) < 2:
        raise ValueError(f"augment must be none for inputs that are no images, got {how!r}")
    if "roll" in words and not sequential:
        raise ValueError(f"augment must be none, flip or shift for images without time, got {how!r}")


def augment_batch(images: Tensor, how: str) -> Tensor:
    """`images`, ``[batch, ..., height, width]``, each changed at random; recordings are ``[batch, T, ...]``.

    ``flip`` mirrors left and right with probability 1/2; ``shift`` moves images by -1, 0 or 1 pixel along
    each axis and recordings by up to an eighth of the side, and fills with zeros; ``roll`` moves recordings
    as far around the edges. Several words are joined by ``-`` and applied in this order; ``none`` does
    nothing.

    Raises:
        ValueError: if `images` have no height and width.

    Source: Li, Kim, Park, Geller & Panda (2022), *Neuromorphic data augmentation for training spiking neural
    networks*.
    """
    words = {*how.split("-")} - {"none"}
    if not words:
        return images
    if images.ndim < 3:
        raise ValueError(f"augment must be none for inputs that are no images, got {how!r}")
    if "flip" in words:
        mirrored = torch.rand(len(images), dtype=torch.float32, device=images.device) < 0.5
        images = torch.where(_per_image(mirrored, images), images.flip(-1), images)
    if "shift" in words:
        images = _moved(images, around=False) if images.ndim == 5 else _shifted(images)
    if "roll" in words:
        images = _moved(images, around=True)
    return images


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along each axis."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 9, [len(images)], dtype=torch.int64, device=images.device)
    shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    images = images.clone()
    for move, candidate in enumerate(shifted):
        images = torch.where(_per_image(moves == move, images), candidate, images)
    return images


def _moved(images: Tensor, *, around: bool) -> Tensor:
    """Each image moved by up to an eighth of its sides: `around` the edges, or filled with zeros."""
    for axis in (-2, -1):
        side = images.shape[axis]
        most = max(1, side // REACH)
        by = torch.randint(-most, most + 1, [len(images), 1], dtype=torch.int64, device=images.device)
        origin = torch.arange(side, dtype=torch.int64, device=images.device) - by  # [batch, side]
        shape = [len(images), *[1] * (images.ndim - 1)]
        shape[axis] = side
        moved = images.gather(axis, (origin % side).view(shape).expand(images.shape))
        inside = ((origin >= 0) & (origin < side)).view(shape)
        images = moved if around else moved * inside
    return images


def _per_image(chosen: Tensor, images: Tensor) -> Tensor:
    return chosen.reshape(-1, *[1] * (images.ndim - 1))
