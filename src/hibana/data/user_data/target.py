"""The label: a class by name, or a quantity."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.data.user_data.table_files import number

TASKS = ("classification", "regression")
FEW = 20
"""Labels with at most this many different numbers are classes."""


@dataclass(frozen=True)
class Target:
    """A label's name, and its classes or the scale of its numbers.

    Args:
        name: name of the label, such as a column's.
        classes: names of the classes, in the order of the network's outputs; empty for a quantity.
        counts: samples of each class in the training part.
        mean: mean of a quantity over the training part.
        deviation: standard deviation of a quantity over the training part.
    """

    name: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    mean: float
    deviation: float

    @property
    def outputs(self) -> int:
        """Number of the network's outputs."""
        return len(self.classes) or 1

    def encoded(self, labels: Sequence[str]) -> Tensor:
        """`labels` as ``int64`` class indices, or as numbers scaled to mean 0 and deviation 1.

        Raises ValueError if a label is an unknown class, or not a finite number.
        """
        if not self.classes:
            return ((_numbers(self.name, labels) - self.mean) / self.deviation).float()
        indices = {name: index for index, name in enumerate(self.classes)}
        if unknown := sorted(set(labels) - set(indices)):
            raise ValueError(
                f"label {self.name!r} must be one of {', '.join(self.classes[:20])}; got {unknown[0]!r}"
            )
        return torch.tensor([indices[label] for label in labels], dtype=torch.int64, device="cpu")

    def decoded(self, scores: Tensor) -> list[float]:
        """Predictions of a quantity, ``[N, 1]``, in the unit of its labels."""
        return [float(score) * self.deviation + self.mean for score in scores[:, 0].tolist()]

    def weights(self) -> tuple[float, ...]:
        """Weights of each class's samples that balance the classes; their mean over samples is 1."""
        total = sum(self.counts)
        return tuple(total / (len(self.counts) * max(1, count)) for count in self.counts)

    def __str__(self) -> str:
        """A clause for the summary: the name and the counts of the classes, or mean and deviation."""
        if not self.classes:
            return f"label `{self.name}`: a quantity (training part: {self.mean:.4g} ± {self.deviation:.2g})"
        counts = ", ".join(f"{name} {count}" for name, count in zip(self.classes, self.counts, strict=True))
        return f"label `{self.name}`: {len(self.classes)} classes" + (
            f" (training part: {counts})" if len(counts) < 60 else ""
        )


def fit_target(name: str, labels: Sequence[str], training: Sequence[int], task: str) -> Target:
    """The target of all `labels`, with the counts or the scale of the samples with the indices `training`.

    Raises:
        ValueError: if there are too few or too many classes, or a label of a quantity is not a finite number.
    """
    if task == "regression":
        numbers = _numbers(name, labels)[list(training)]
        deviation = float(numbers.std(correction=0))
        if deviation == 0:
            raise ValueError(f"label {name!r} must differ between samples, each is {labels[0]}")
        return Target(name, (), (), float(numbers.mean()), deviation)
    numbers_first = {name: math.inf if math.isnan(number(name)) else number(name) for name in labels}
    classes = tuple(sorted(numbers_first, key=lambda name: (numbers_first[name], name)))
    if len(classes) < 2:
        rows = "the only sample" if len(labels) == 1 else f"each of {len(labels):,} samples"
        raise ValueError(
            f"label {name!r} must have at least two classes, and {rows} has {', '.join(map(repr, classes))}; "
            f"choose another label, or add samples"
        )
    if len(classes) > max(FEW, len(labels) // 2):
        raise ValueError(
            f"label {name!r} has {len(classes)} classes in {len(labels)} samples; is it a quantity "
            f"(task regression), or another column's (label)?"
        )
    counts = Counter(labels[index] for index in training)
    return Target(name, classes, tuple(counts[label] for label in classes), 0.0, 1.0)


def texts(labels: Sequence[object]) -> list[str]:
    """Labels as texts: whole numbers without a point, texts without spaces around them.

    >>> texts([1.0, 2.5, "cat "])
    ['1', '2.5', 'cat']
    """
    is_integer = [isinstance(label, float) and label.is_integer() for label in labels]
    return [str(int(v)) if integer else str(v).strip() for v, integer in zip(labels, is_integer, strict=True)]  # type: ignore[call-overload]


def column_texts(column: Any) -> list[str]:
    """The values of a pandas column as texts, missing values as empty texts."""
    return texts(column.astype(object).where(column.notna(), "").tolist())


def guess_task(labels: Sequence[str]) -> str:
    """``regression`` if the labels are many different numbers, else ``classification``."""
    numbers = [number(label) for label in set(labels)]
    if any(map(math.isnan, numbers)):
        return "classification"
    are_integers = all(value.is_integer() for value in numbers)
    many = len(numbers) > FEW and (not are_integers or len(numbers) > len(labels) // 20)
    fractions = not are_integers and len(numbers) > len(labels) // 10
    return "regression" if many or fractions else "classification"


def _numbers(name: str, labels: Sequence[str]) -> Tensor:
    """`labels` as ``float64``, ``[N]``; the error for a label that is not a number contains `name`."""
    numbers = [number(label) for label in labels]
    for row, value in enumerate(numbers, start=1):
        if not math.isfinite(value):
            raise ValueError(f"label {name!r} must be finite numbers, got {labels[row - 1]!r} in row {row}")
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
