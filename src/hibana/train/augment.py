"""What is done to training images and recordings of events, a batch at a time.

All that is random is drawn by torch, so it follows from the seed. Nothing here knows a network.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented", "check", "mixed"]

OF_RECORDINGS = ("roll", "drop", "mix")
"""Words of what is done to recordings alone."""
REACH = 8
"""Recordings move by up to this part of a side: the eighth."""
MOST_DROPPED = 0.5
"""Of a recording's bins, or of its time or sides, at most."""
BLOBS = 2
"""Gaussians of which the part that comes from the other recording is made."""


def check(how: str | None, shape: tuple[int, ...], *, sequential: bool) -> None:
    """Checks that samples can be augmented.

    Args:
        how: as of :func:`augmented`; ``None`` checks nothing.
        shape: of one step of a sample.
        sequential: whether samples have a time axis.

    Raises:
        ValueError: if samples are no images, or are not recordings and `how` is only for those.
    """
    words = {*(how or "none").split("-")} - {"none"}
    if words and len(shape) < 2:
        raise ValueError(f"augment must be none for inputs that are no images, got {how!r}")
    if words & {*OF_RECORDINGS} and not sequential:
        raise ValueError(f"augment must be none, flip or shift for images without time, got {how!r}")


def augmented(images: Tensor, how: str) -> Tensor:
    """`images`, ``[batch, ..., height, width]``, each changed at random; recordings are ``[batch, T, ...]``.

    ``flip`` mirrors left and right with probability 1/2; ``shift`` moves by -1, 0 or 1 pixel along each axis,
    zeros coming in, recordings by up to an eighth of the side; ``roll`` moves as far, and what leaves comes
    in on the other side; ``drop`` sets to zero single bins, a stretch of time, a rectangle, or nothing, each
    as likely, up to half of it. Several are joined by ``-``, and are done in this order. ``mix`` is
    :func:`mixed`, and does nothing here, nor does ``none``.

    Raises:
        ValueError: if `images` have no height and width, and something is to be done.

    Source: Li, Kim, Park, Geller & Panda (2022), *Neuromorphic data augmentation for training spiking neural
    networks* (flip, roll, shift); Gu, Sng, Hu & Yu (2021), *EventDrop: data augmentation for event-based
    learning* (drop).
    """
    words = how.split("-")
    if not {*words} - {"none", "mix"}:
        return images
    if images.ndim < 3:
        raise ValueError(f"augment must be none for inputs that are no images, got {how!r}")
    if "flip" in words:
        mirrored = torch.rand(len(images), dtype=torch.float32, device=images.device) < 0.5
        images = torch.where(_each(mirrored, images), images.flip(-1), images)
    if "shift" in words:
        images = _moved(images, around=False) if images.ndim == 5 else _shifted(images)
    if "roll" in words:
        images = _moved(images, around=True)
    if "drop" in words:
        images = images * _kept(images)
    return images


def mixed(recordings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`recordings`, ``[batch, T, ..., height, width]``, half of them with a part of another; and labels.

    The part is where a mixture of Gaussians over time, height and width is highest; its share of the volume
    is drawn evenly. The label is drawn too: the recording's own with the probability that an event of what
    came out is its own. In the mean over draws that is the loss of labels mixed by their share of the events.

    Source: Shen, Zhao & Zeng (2023), *EventMix: an efficient data augmentation strategy for event-based
    learning*.
    """
    batch, device = len(recordings), recordings.device
    sides = recordings.shape[1], *recordings.shape[-2:]
    density = torch.zeros(batch, *sides, dtype=torch.float32, device=device)
    for _ in range(BLOBS):
        exponent = torch.zeros(batch, 1, 1, 1, dtype=torch.float32, device=device)
        for axis, side in enumerate(sides):
            place = torch.linspace(0, 1, side, dtype=torch.float32, device=device)
            middle, width = torch.rand(2, batch, 1, dtype=torch.float32, device=device)
            squares = ((place - middle) / (0.1 + 0.4 * width)).square()
            exponent = exponent + squares.view(batch, *(-1 if k == axis else 1 for k in range(3)))
        density = density + (-exponent / 2).exp()
    flat = density.flatten(1)
    share, takes, chance = torch.rand(3, batch, dtype=torch.float32, device=device)
    rank = flat.argsort(1, descending=True).argsort(1)
    foreign = rank < (share * (takes < 0.5))[:, None] * flat.shape[1]
    between = [1] * (recordings.ndim - 4)
    of_other = foreign.view(batch, sides[0], *between, *sides[1:])
    order = torch.randperm(batch, dtype=torch.int64, device=device)
    result = torch.where(of_other, recordings[order], recordings)
    own = (recordings.abs() * ~of_other).flatten(1).sum(1) / result.abs().flatten(1).sum(1).clamp(min=1e-12)
    keeps = (chance < own) | ~foreign.any(1)
    return result, torch.where(keeps, labels, labels[order])


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along each axis."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 9, [len(images)], dtype=torch.int64, device=images.device)
    shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    images = images.clone()
    for move, candidate in enumerate(shifted):
        images = torch.where(_each(moves == move, images), candidate, images)
    return images


def _moved(images: Tensor, *, around: bool) -> Tensor:
    """Each image moved by up to an eighth of its sides; `around` the edges, or with zeros coming in."""
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


def _kept(images: Tensor) -> Tensor:
    """Zeros where something is dropped of ``[batch, T, ..., height, width]``, ones elsewhere."""
    batch, device = len(images), images.device
    way = torch.randint(0, 4, [batch], dtype=torch.int64, device=device)  # nothing, bins, time, a rectangle
    share = MOST_DROPPED * torch.rand(batch, dtype=torch.float32, device=device)
    drawn = torch.rand(images.shape, dtype=torch.float32, device=device)
    dropped = _each(way == 1, images) & (drawn < _each(share, images))
    axes = (1, images.ndim - 2, images.ndim - 1)
    within = [_stretch(images, axis) for axis in axes]
    dropped |= _each(way == 2, images) & within[0]
    dropped |= _each(way == 3, images) & within[1] & within[2]
    return (~dropped).to(images.dtype)


def _stretch(images: Tensor, axis: int) -> Tensor:
    """Of each image a stretch along `axis`, up to half of it, anywhere."""
    side = images.shape[axis]
    length, begin = torch.rand(2, len(images), 1, dtype=torch.float32, device=images.device)
    length = length * MOST_DROPPED * side
    begin = begin * (side - length)
    place = torch.arange(side, dtype=torch.float32, device=images.device)
    shape = [len(images), *[1] * (images.ndim - 1)]
    shape[axis] = side
    inside: Tensor = (place >= begin) & (place < begin + length)
    return inside.view(shape)


def _each(which: Tensor, images: Tensor) -> Tensor:
    return which.reshape(-1, *[1] * (images.ndim - 1))
