"""Samples as a reader returns them, and their split into training, validation and test samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["Parts", "Raw", "draw_parts", "span", "with_validation"]

Parts = tuple[list[int], list[int], list[int]]
"""Indices of the training, validation and test samples."""
TEST, VALIDATION = 0.2, 0.1
"""Shares of the samples if the source defines no split."""
EACH = 10
"""Every 10th training sample validates if the source defines no validation samples."""


@dataclass
class Raw:
    """Samples before scaling.

    Args:
        values: one entry per sample, as the kind of data stores them.
        labels: one text per sample, empty where it is missing; ``None`` if the source has no labels.
        names: of the samples.
        summary: describes what was read.
        parts: the split, if the source defines one.
        label: name of the labels.
        notes: how text was parsed.
        gaps: per sample the name of a feature with a missing value, or an empty text; empty if no sample has
            one.
    """

    values: Any
    labels: list[str] | None
    names: list[str]
    summary: str = ""
    parts: Parts | None = None
    label: str = "class"
    notes: Sequence[str] = ()
    gaps: Sequence[str] = ()

    def describe(self, source: str) -> str:
        """The line about the file called `source`: how it was parsed, and what was read."""
        return f"{source}: {', '.join([*self.notes, *([self.summary] if self.summary else [])])}"

    def usable(self, source: str, *, drop_gaps: bool) -> "Raw":
        """The samples that have a label, and no missing values if `drop_gaps`; with notes on the others.

        Raises:
            ValueError: if there are no such samples, or only one of the classes has a label.
        """
        if self.labels is None:
            raise ValueError(f"{source} must have labels ({self.label!r}); {self.summary or 'it has none'}")
        gaps = self.gaps if drop_gaps and self.gaps else [""] * len(self.labels)
        kept = [index for index, label in enumerate(self.labels) if label and not gaps[index]]
        unlabelled = self.labels.count("")
        incomplete = len(self.labels) - unlabelled - len(kept)
        if unlabelled and len(set(self.labels)) <= 2:
            raise ValueError(
                f"label {self.label!r} must have at least two classes, got "
                f"{', '.join({*self.labels} - {''}) or 'none'}; {unlabelled:,} samples of {source} have "
                f"none: NA, N/A, None, nan, ? and empty cells are missing values"
            )
        if len(kept) == len(self.labels):
            return self
        summary = self.summary
        for count, reason in ((incomplete, "with missing values"), (unlabelled, "without a label")):
            summary += f", {count:,} samples {reason} left out" if count else ""
        parts = self.parts
        if parts is not None:
            place = {index: position for position, index in enumerate(kept)}
            training, validation, test = ([place[i] for i in part if i in place] for part in parts)
            parts = training, validation, test
        values = self.values.iloc[kept] if hasattr(self.values, "iloc") else [self.values[i] for i in kept]
        labels, names = ([texts[index] for index in kept] for texts in (self.labels, self.names))
        return replace(self, values=values, labels=labels, names=names, summary=summary, parts=parts, gaps=())


def draw_parts(labels: Sequence[str], seed: int, *, stratified: bool, tested: bool = True) -> Parts:
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
    """`parts` with every 10th training sample for validation, if there are no validation samples."""
    training, validation, test = parts
    validation = validation or training[EACH - 1 :: EACH] or training[-1:]
    held = set(validation)
    return [index for index in training if index not in held], validation, test


def span(least: object, most: object) -> str:
    """A range of values in a sentence: ``3 to 5``, or ``3``."""
    return f"{least}" if least == most else f"{least} to {most}"


def _share(count: int, share: float) -> int:
    """The rounded `share` of `count`, and at least one of three."""
    return min(max(round(count * share), 1 if count >= 3 else 0), count)
