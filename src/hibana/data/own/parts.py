"""Which samples train, which validate and which test."""

from collections.abc import Sequence

import torch

__all__ = ["drawn"]

Parts = tuple[list[int], list[int], list[int]]
TEST, VALIDATION = 0.2, 0.1
"""Shares of the samples, where no parts are given."""


def drawn(labels: Sequence[str], seed: int, *, stratified: bool, tested: bool = True) -> Parts:
    """Training, validation and test: a fifth to test, a tenth to validate, each in its own order.

    Args:
        labels: of all samples.
        seed: of the draw; the same labels and seed give the same parts.
        stratified: give each part its share of each class; a class of three and more is in all of them.
        tested: whether a part is to test; if not, samples to test with were given.

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
    wanted = parts if tested else parts[:2]
    if not all(wanted):
        raise ValueError(f"samples must be enough to train, validate and test on, got {len(labels)}")
    return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])


def _share(count: int, share: float) -> int:
    """How many of `count`: `share`, rounded, at least one of three."""
    return min(max(round(count * share), 1 if count >= 3 else 0), count)
