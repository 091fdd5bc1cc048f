"""What a linear model makes of the same data: the least that a network should do."""

from typing import Any, NamedTuple

import torch
from torch.utils.data import default_collate

from hibana import data
from hibana.train.classifier import Classifier

__all__ = ["Linear", "first", "linear", "linear_accuracy"]

ENOUGH = 10_000
"""Samples that it is fitted to at most."""


class Linear(NamedTuple):
    """A linear model's accuracy, or of a quantity the part of its variance explained, on the test set.

    `balanced` is the mean of the classes' recalls.
    """

    name: str
    accuracy: float
    balanced: float | None


@torch.no_grad()
def linear(model: Classifier, samples: data.DataSet) -> Linear:
    """Logistic regression, or of a quantity a ridge, on the input; of spikes on their counts, without timing.

    Fitted to at most the first 10,000 training samples, without augmentation.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    samples.setup()
    parts: list[Any] = []
    for split, count in ((samples.training, ENOUGH), (samples.test, len(samples.test))):  # type: ignore[arg-type]
        inputs, labels = gathered(split, min(count, len(split)))  # type: ignore[arg-type]
        if model.settings.coding == "delta" or (model.settings.coding == "none" and _are_spikes(inputs)):
            inputs = model.encode(inputs).sum(dim=0)
        parts += [inputs.flatten(1).numpy(), labels.numpy()]
    if model.is_regression:
        answers = Ridge().fit(*parts[:2]).predict(parts[2])
        return Linear("ridge regression", 1 - float(((answers - parts[3]) ** 2).mean()), None)
    weights = "balanced" if model.settings.class_weights == "balanced" else None
    answers = LogisticRegression(max_iter=1000, class_weight=weights).fit(*parts[:2]).predict(parts[2])
    right = answers == parts[3]
    recalls = [right[parts[3] == label].mean() for label in sorted(set(parts[3].tolist()))]
    return Linear("linear classifier", float(right.mean()), float(sum(recalls) / len(recalls)))


def linear_accuracy(model: Classifier, samples: data.DataSet) -> float:
    """The accuracy of :func:`linear`."""
    return linear(model, samples).accuracy


def first(samples: data.DataSet) -> torch.Tensor:
    """The first inputs of the training set: 512, or as many as there are."""
    inputs, _ = gathered(samples.training, min(512, len(samples.training)))  # type: ignore[arg-type]
    return inputs


def gathered(split: data.Samples, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` inputs and labels."""
    inputs, labels = default_collate([split[index] for index in range(count)])
    return inputs, labels


def _are_spikes(inputs: torch.Tensor) -> bool:
    return bool(((inputs == 0) | (inputs == 1)).all())
