"""The split into training, validation and test samples."""

from collections.abc import Sequence

import torch

__all__ = ["Parts", "drawn", "with_validation"]

Parts = tuple[list[int], list[int], list[int]]
TEST, VALIDATION = 0.2, 0.1
"""Shares of the samples, if no split is given."""
EACH = 10
"""Every 10th training sample validates if only a test part is given."""


def drawn(labels: Sequence[str], seed: int, *, stratified: bool, tested: bool = True) -> Parts:
    """A random split: a fifth to test, a tenth to validate; the same for the same labels and seed.

    Args:
        labels: of all samples.
        seed: of the draw.
        stratified: give each part its share of each class, and of a class of three or more at least one.
        tested: whether to draw a test part.

    Raises:
        ValueError: if there are too few samples.
    """
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label if stratified else "", []).append(index)
    parts: Parts = ([], [], [])
    for name in sorted(groups):
        members = groups[name]
        order = torch.randperm(len(members), generator=generator, dtype=torch.int64, device="cpu").tolist()
        test = _share(len(members), TEST) if tested else 0
        held = test + _share(len(members), VALIDATION)
        for place, position in enumerate(order):
            part = parts[2] if place < test else parts[1] if place < held else parts[0]
            part.append(members[position])
    if not all(parts if tested else parts[:2]):
        raise ValueError(f"samples must be enough to train, validate and test on, got {len(labels)}")
    return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])


def with_validation(parts: Parts) -> Parts:
    """`parts` with every 10th training sample for validation, if none validates."""
    training, validation, test = parts
    validation = validation or training[EACH - 1 :: EACH] or training[-1:]
    held = set(validation)
    return [index for index in training if index not in held], validation, test


def _share(count: int, share: float) -> int:
    """The rounded `share` of `count`, and at least one of three."""
    return min(max(round(count * share), 1 if count >= 3 else 0), count)
