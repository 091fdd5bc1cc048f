"""Samples before scaling, their split into training, validation and test samples, and their scale."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hibana.data.base import machine_memory

Parts = tuple[list[int], list[int], list[int]]
"""Indices of the training, validation and test samples."""
TEST, VALIDATION = 0.2, 0.1
"""Shares of the samples if the source defines no split."""
EACH = 10
"""Every 10th training sample is for validation if the source defines a test part alone."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory that the samples of a source may fill."""
UNCHECKED_BYTES, MAX_EXPANSION = 500_000_000, 500
"""Contents of more bytes may take at most MAX_EXPANSION times the size of their file. Random
spikes of which 1% are set take 50 times the size of their archive (measured); zeros take 1,000 times."""


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Converts each error in its block to a ValueError of one line, ``SOURCE can't be read: REASON``.

    Readers raise many types for damaged files. A missing library still raises ImportError.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise ValueError(f"{source} can't be read: {reason}") from error


def check_size(path: Path, size: int) -> None:
    """Raises a ValueError if the contents of a file, `size` bytes, fill the memory or can't be meant."""
    expansion = size // max(1, path.stat().st_size)
    if size > UNCHECKED_BYTES and expansion > MAX_EXPANSION:
        raise ValueError(
            f"it declares {size / 1e6:,.0f} MB, {expansion:,} times its size; at most {MAX_EXPANSION} times "
            f"are read"
        )
    if size > (most := MEMORY_SHARE * machine_memory()):
        raise ValueError(
            f"it declares {size / 1e9:,.1f} GB; {most / 1e9:.1f} GB fit in {MEMORY_SHARE:.0%} of the memory"
        )


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


FAR, OFTEN = 1.0, 0.05
"""Data differ from the training data if more than the share OFTEN of a feature's values lie outside the range
of the training part by more than FAR times its width."""


@dataclass(frozen=True)
class Scale:
    """A shift and a factor, one for each feature (the last axis), or one for all features.

    Args:
        shift: subtracted first.
        factor: multiplied with the difference.
        low: the smallest value of the training part.
        high: the largest value of the training part.
        clipped: whether results are clipped to [0, 1].
    """

    shift: tuple[float, ...]
    factor: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clipped: bool

    def __call__(self, values: Tensor) -> Tensor:
        """`values`, ``[..., F]`` or of any shape for a joint scale, scaled, as ``float32``."""
        shift, factor = _tensor(self.shift), _tensor(self.factor)
        scaled = ((values.double() - shift) * factor).float()
        return scaled.clamp(0, 1) if self.clipped else scaled

    def difference_from_training(self, values: Tensor, names: Sequence[str]) -> str:
        """A clause that names a feature of `values`, ``[..., F]``, with another range than in training.

        Empty if there is no such feature.

        Args:
            values: numbers before scaling.
            names: one name per feature, or one name if the scale has one entry.
        """
        flat = values.reshape(-1, len(self.low)).double()
        low, high = _tensor(self.low), _tensor(self.high)
        width = (high - low).clamp(min=1e-12) * FAR
        outside = ((flat < low - width) | (flat > high + width)).double().mean(0)
        for index in (outside > OFTEN).nonzero().flatten().tolist():
            name, column = names[index], flat[:, index]
            return (
                f"{name} goes from {column.min():.4g} to {column.max():.4g}; the training data go "
                f"from {self.low[index]:.4g} to {self.high[index]:.4g}"
            )
        return ""


def fit_scale(values: Tensor, *, unit: bool, joint: bool = False) -> Scale:
    """The scale that maps `values`, ``[..., F]``, to mean 0 and deviation 1, or to [0, 1] with `unit`.

    A feature that never changes becomes 0. `joint` fits one scale for all features.
    """
    flat = values.reshape(-1, 1 if joint else values.shape[-1]).double()
    low, high = flat.amin(0), flat.amax(0)
    deviation, mean = torch.std_mean(flat, dim=0, correction=0)
    shift, width = (low, high - low) if unit else (mean, deviation)
    constant = width <= 1e-12 * flat.abs().amax(0).clamp(min=1e-300)
    factor = torch.where(constant, 0.0, 1 / width)
    shifts, factors, lows, highs = (tuple(row.tolist()) for row in (shift, factor, low, high))
    return Scale(shifts, factors, lows, highs, clipped=unit)


def _tensor(values: tuple[float, ...]) -> Tensor:
    """`values` as ``float64`` on the CPU."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")
