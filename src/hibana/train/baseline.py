"""A linear model on the same data, to compare a network with."""

from typing import Any

import torch
from torch.utils.data import default_collate

from hibana import data
from hibana.compiler.analysis.binary import is_binary
from hibana.nn import lengths as padding
from hibana.nn import loss
from hibana.runtime.extras import explain_import_error
from hibana.train.network import Network
from hibana.train.results import Linear

MAX_SAMPLES = 10_000
"""Training samples that the linear model is fitted to, at most."""


@torch.no_grad()
@explain_import_error("hibana.train.linear")
def linear(model: Network, samples: data.DataSet) -> Linear:
    """Fits logistic regression, or ridge regression for a quantity, to the inputs, and tests it.

    Inputs that are spikes are replaced by their counts over time. The model is fitted to at most 10,000
    training samples, without augmentation; logistic regression with one thread, since several take more than
    twice as long.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    samples.setup()
    arrays: list[Any] = []
    for split, count in ((samples.training, MAX_SAMPLES), (samples.test, len(samples.test))):  # type: ignore[arg-type] # all splits have a length
        inputs, labels, *lengths = first_samples(split, count)
        if lengths:  # series of unequal length: their means over time
            total = padding.masked(inputs.transpose(0, 1), lengths[0]).sum(0)
            inputs = total / lengths[0].view(-1, *[1] * (inputs.ndim - 2))
        elif model.settings.coding == "delta" or (model.settings.coding == "none" and is_binary(inputs)):
            inputs = model.encode(inputs).sum(dim=0)
        arrays += [inputs.flatten(1).numpy(), labels.numpy()]
    *training, inputs, targets = arrays  # inputs and labels of the training part, then of the test part
    if model.is_regression:
        answers = Ridge().fit(*training).predict(inputs)
        explained = loss.r_squared(torch.from_numpy(answers), torch.from_numpy(targets))
        assert model.description is not None
        error = float(((answers - targets) ** 2).mean()) * model.description.target.deviation**2
        return Linear("explained", explained, "ridge regression", error=error)
    weights = "balanced" if model.settings.class_weights == "balanced" else None
    with threadpool_limits(1, user_api="blas"):
        answers = LogisticRegression(max_iter=1000, class_weight=weights).fit(*training).predict(inputs)
    recalls = [(answers[targets == label] == label).mean() for label in sorted(set(targets.tolist()))]
    accuracy, balanced = float((answers == targets).mean()), float(sum(recalls) / len(recalls))
    return Linear("accuracy", accuracy, "linear classifier", balanced)


def linear_accuracy(model: Network, samples: data.DataSet) -> float:
    """Returns the accuracy of :func:`linear`; raises an AttributeError for regression."""
    return linear(model, samples).accuracy


def first_samples(split: data.Samples, count: int) -> tuple[torch.Tensor, ...]:
    """Returns inputs and labels of the first `count` samples of `split`, and their lengths if padded."""
    return tuple(default_collate([split[index] for index in range(min(count, len(split)))]))  # type: ignore[arg-type]
