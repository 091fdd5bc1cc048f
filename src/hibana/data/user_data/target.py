"""The label: a class by name, or a quantity."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["TASKS", "Target", "column_texts", "guess_task", "fit_target", "text_of", "texts"]

TASKS = ("classification", "regression")
FEW = 20
"""Labels with at most this many different numbers are classes."""


@dataclass(frozen=True)
class Target:
    """A label's name, and its classes or the scale of its numbers.

    Args:
        name: of the label, such as a column's.
        classes: their names, in the order of the network's outputs; none of a quantity.
        counts: samples of each class in the training part.
        mean: of a quantity, over the training part.
        deviation: its standard deviation there.
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
        """`labels`, texts, as ``int64`` classes, or as numbers scaled to mean 0 and deviation 1.

        Raises:
            ValueError: if one is an unknown class, or no number.
        """
        if not self.classes:
            numbers = torch.tensor(_numbers(self.name, labels), dtype=torch.float64, device="cpu")
            return ((numbers - self.mean) / self.deviation).float()
        indices = {name: index for index, name in enumerate(self.classes)}
        unknown = sorted(set(labels) - set(indices))
        if unknown:
            raise ValueError(
                f"label {self.name!r} must be one of {', '.join(self.classes[:20])}; got {unknown[0]!r}"
            )
        return torch.tensor([indices[label] for label in labels], dtype=torch.int64, device="cpu")

    def decoded(self, scores: Tensor) -> list[float]:
        """Predictions of a quantity, ``[N, 1]``, in its units."""
        return [float(score) * self.deviation + self.mean for score in scores[:, 0].tolist()]

    def weights(self) -> tuple[float, ...]:
        """Weights of the classes' samples that balance the classes; 1 on average over samples."""
        total = sum(self.counts)
        return tuple(total / (len(self.counts) * max(1, count)) for count in self.counts)

    def __str__(self) -> str:
        if not self.classes:
            return f"label `{self.name}`: a quantity (training part: {self.mean:.4g} ± {self.deviation:.2g})"
        shown = ", ".join(f"{name} {count}" for name, count in zip(self.classes, self.counts, strict=True))
        return f"label `{self.name}`: {len(self.classes)} classes" + (
            f" (training part: {shown})" if len(shown) < 60 else ""
        )


def fit_target(name: str, labels: Sequence[str], training: Sequence[int], task: str) -> Target:
    """The target of `labels`, texts, with the scale and counts of the training part.

    Raises:
        ValueError: if there are too few or too many classes, or a quantity is no number.
    """
    if task == "regression":
        numbers = torch.tensor(_numbers(name, labels), dtype=torch.float64, device="cpu")[list(training)]
        deviation = float(numbers.std(correction=0))
        if deviation == 0:
            raise ValueError(f"label {name!r} must differ between samples, each is {labels[0]}")
        return Target(name, (), (), float(numbers.mean()), deviation)
    classes = tuple(sorted(set(labels), key=_order))
    if len(classes) < 2:
        raise ValueError(f"label {name!r} must have at least two classes, got {', '.join(classes) or 'none'}")
    if len(classes) > max(FEW, len(labels) // 2):
        raise ValueError(
            f"label {name!r} has {len(classes)} classes in {len(labels)} samples; is it a quantity "
            f"(task regression), or another column's (label)?"
        )
    counts = Counter(labels[index] for index in training)
    return Target(name, classes, tuple(counts[each] for each in classes), 0.0, 1.0)


def text_of(value: object) -> str:
    """A label as text: whole numbers without a point.

    >>> text_of(1.0), text_of(2.5), text_of("cat ")
    ('1', '2.5', 'cat')
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def texts(labels: Sequence[object]) -> list[str]:
    """Labels as text."""
    return [text_of(label) for label in labels]


def column_texts(column: Any) -> list[str]:
    """The values of a column as text, missing ones empty."""
    return texts(column.astype(object).where(column.notna(), "").tolist())


def guess_task(labels: Sequence[str]) -> str:
    """``regression`` if the labels are many different numbers, else ``classification``."""
    values = set(labels)
    numbers = [_number(value) for value in values]
    if any(math.isnan(number) for number in numbers):
        return "classification"
    whole = all(number.is_integer() for number in numbers)
    many = len(values) > FEW and (not whole or len(values) > len(labels) // 20)
    return "regression" if many or (not whole and len(values) > len(labels) // 10) else "classification"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbers(name: str, labels: Sequence[str]) -> list[float]:
    numbers = [_number(label) for label in labels]
    for row, number in enumerate(numbers, start=1):
        if not math.isfinite(number):
            raise ValueError(f"label {name!r} must be finite numbers, got {labels[row - 1]!r} in row {row}")
    return numbers


def _order(name: str) -> tuple[float, str]:
    number = _number(name)
    return (math.inf, name) if math.isnan(number) else (number, name)
