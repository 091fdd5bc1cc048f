"""Samples before scaling, and their split into training, validation and test samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Parts = tuple[list[int], list[int], list[int]]
"""Indices of the training, validation and test samples."""
TEST, VALIDATION = 0.2, 0.1
"""Shares of the samples if the source defines no split."""
EACH = 10
"""Every 10th training sample is for validation if the source defines a test part alone."""


@dataclass
class RawSamples:
    """Samples before scaling.

    Args:
        values: one entry per sample, in the form that the kind of data uses.
        labels: one text per sample, empty for a missing label; ``None`` if the source has no labels.
        names: names of the samples.
        summary: description of the samples.
        parts: the split, if the source defines one.
        label: name of the labels.
        notes: how the text of the source was parsed.
    """

    values: Any
    labels: list[str] | None
    names: list[str]
    summary: str = ""
    parts: Parts | None = None
    label: str = "class"
    notes: Sequence[str] = ()

    def describe(self, source: str) -> str:
        """A line about the samples of the file `source`: how it was parsed, and the summary."""
        return f"{source}: {', '.join([*self.notes, *([self.summary] if self.summary else [])])}"

    def labelled(self, source: str) -> "RawSamples":
        """The samples that have a label; the summary of the result counts the others.

        Raises ValueError if no sample of `source` has a label, or all labels are the same and others missing.
        """
        if self.labels is None:
            raise ValueError(f"{source} must have labels ({self.label!r}); {self.summary or 'it has none'}")
        unlabelled = self.labels.count("")
        if unlabelled == 0:
            return self
        if len(set(self.labels)) <= 2:
            raise ValueError(
                f"label {self.label!r} must have at least two classes, got "
                f"{', '.join({*self.labels} - {''}) or 'none'}; {unlabelled:,} samples of {source} have "
                f"none: NA, N/A, None, nan, ? and empty cells are missing values"
            )
        indices = [index for index, label in enumerate(self.labels) if label]
        summary, parts = f"{self.summary}, {unlabelled:,} samples without a label left out", self.parts
        if parts is not None:
            new_indices = {index: position for position, index in enumerate(indices)}
            training, validation, test = (
                [new_indices[index] for index in part if index in new_indices] for part in parts
            )
            parts = training, validation, test
        is_frame = hasattr(self.values, "iloc")
        values = self.values.iloc[indices] if is_frame else [self.values[index] for index in indices]
        labels, names = ([texts[index] for index in indices] for texts in (self.labels, self.names))
        return replace(self, values=values, labels=labels, names=names, summary=summary, parts=parts)


def draw_parts(labels: Sequence[str], seed: int, *, stratified: bool, has_test: bool = True) -> Parts:
    """A random split: a fifth for the test, a tenth for validation; the same for equal labels and seeds.

    Args:
        labels: labels of all samples.
        seed: seed of the random numbers.
        stratified: give each part its share of each class, and at least one sample of a class of three or
            more.
        has_test: whether to draw a test part.

    Raises:
        ValueError: if a part would be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label if stratified else "", []).append(index)
    parts: Parts = ([], [], [])
    for name in sorted(groups):
        members = groups[name]
        order = torch.randperm(len(members), generator=generator, dtype=torch.int64, device="cpu").tolist()
        test = _share(len(members), TEST) if has_test else 0
        held_out = test + _share(len(members), VALIDATION)
        for place, position in enumerate(order):
            part = parts[2] if place < test else parts[1] if place < held_out else parts[0]
            part.append(members[position])
    if not all(parts if has_test else parts[:2]):
        raise ValueError(f"samples must be enough to train, validate and test on, got {len(labels)}")
    return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])


def add_validation(parts: Parts) -> Parts:
    """`parts`, with every 10th training sample as validation part if that is empty."""
    training, validation, test = parts
    validation = validation or training[EACH - 1 :: EACH] or training[-1:]
    return sorted(set(training) - set(validation)), validation, test


def span(smallest: object, largest: object) -> str:
    """A range of values in a sentence: ``3 to 5``, or ``3``."""
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest}"


def _share(count: int, share: float) -> int:
    """``share * count``, rounded; at least 1 if `count` is 3 or more."""
    return min(max(round(count * share), 1 if count >= 3 else 0), count)
