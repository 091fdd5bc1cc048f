"""A linear model on the same data: a network should be at least as good."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import default_collate

from hibana import data
from hibana.nn import lengths as padding
from hibana.nn import loss
from hibana.runtime.extras import explain_import_error

if TYPE_CHECKING:
    from hibana.train.network import Network

__all__ = ["Linear", "first", "linear", "linear_accuracy"]

ENOUGH = 10_000
"""Most training samples of a linear model."""


class Linear(NamedTuple):
    """Result of a linear model on the test set.

    Attributes:
        name: kind of the model.
        accuracy: share that is classified correctly; for a quantity the share of its variance explained (R²).
        balanced: mean recall of the classes.
        error: mean squared error of a quantity, in units of its variance in the training part.
    """

    name: str
    accuracy: float
    balanced: float | None
    error: float | None = None


@torch.no_grad()
@explain_import_error("hibana.train.linear")
def linear(model: "Network", samples: data.DataSet) -> Linear:
    """Logistic regression, or a ridge for a quantity, on the input; for spikes on their counts.

    It is fitted to at most 10,000 training samples, without augmentation, with one thread: several threads
    take more than twice as long for such small products.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    samples.setup()
    parts: list[Any] = []
    for split, count in ((samples.training, ENOUGH), (samples.test, len(samples.test))):  # type: ignore[arg-type] # all splits have a length
        inputs, labels, *lengths = first(split, count)
        if lengths:  # of unequal length: their means over time
            inputs = padding.masked(inputs.transpose(0, 1), lengths[0]).sum(0) / lengths[0].view(
                -1, *[1] * (inputs.ndim - 2)
            )
        elif model.settings.coding == "delta" or (model.settings.coding == "none" and _are_spikes(inputs)):
            inputs = model.encode(inputs).sum(dim=0)
        parts += [inputs.flatten(1).numpy(), labels.numpy()]
    *training, inputs, targets = parts
    if model.is_regression:
        answers = Ridge().fit(*training).predict(inputs)
        explained = loss.r_squared(torch.from_numpy(answers), torch.from_numpy(targets))
        return Linear("ridge regression", explained, None, float(((answers - targets) ** 2).mean()))
    weights = "balanced" if model.settings.class_weights == "balanced" else None
    with threadpool_limits(1, user_api="blas"):
        answers = LogisticRegression(max_iter=1000, class_weight=weights).fit(*training).predict(inputs)
    recalls = [(answers[targets == label] == label).mean() for label in sorted(set(targets.tolist()))]
    return Linear("linear classifier", float((answers == targets).mean()), float(sum(recalls) / len(recalls)))


def linear_accuracy(model: "Network", samples: data.DataSet) -> float:
    """The accuracy of :func:`linear`."""
    return linear(model, samples).accuracy


def first(split: data.Samples, count: int) -> tuple[torch.Tensor, ...]:
    """The first inputs and labels, at most `count`, and lengths if they are padded."""
    return tuple(default_collate([split[index] for index in range(min(count, len(split)))]))  # type: ignore[arg-type]


def _are_spikes(inputs: torch.Tensor) -> bool:
    return bool(((inputs == 0) | (inputs == 1)).all())
