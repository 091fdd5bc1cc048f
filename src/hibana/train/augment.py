"""What is done to training images, a batch at a time."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented"]


def augmented(images: Tensor, how: str) -> Tensor:
    """`images`, ``[batch, ..., height, width]``, each changed at random.

    ``flip`` mirrors left and right with probability 1/2; ``shift`` moves by -1, 0 or 1 pixel along each axis,
    zeros coming in; ``flip-shift`` does both; ``none`` nothing.

    Raises:
        ValueError: if `images` have no height and width, and something is to be done.
    """
    if how == "none":
        return images
    if images.ndim < 3:
        raise ValueError(f"augment must be none for inputs that are no images, got {how!r}")
    if "flip" in how:
        mirrored = torch.rand(len(images), dtype=torch.float32, device=images.device) < 0.5
        images = torch.where(_each(mirrored, images), images.flip(-1), images)
    if "shift" in how:
        height, width = images.shape[-2:]
        padded = functional.pad(images, (1, 1, 1, 1))
        moves = torch.randint(0, 9, [len(images)], dtype=torch.int64, device=images.device)
        shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        images = images.clone()
        for move, candidate in enumerate(shifted):
            images = torch.where(_each(moves == move, images), candidate, images)
    return images


def _each(which: Tensor, images: Tensor) -> Tensor:
    return which.reshape(-1, *[1] * (images.ndim - 1))
