"""Losses and decisions from the outputs of the last layer over time.

An *objective* is an immutable object. Its :meth:`~Objective.scores` convert ``[T, batch, classes]`` to
``[batch, classes]``; a call of the objective returns the loss, and :meth:`~Objective.accuracy` compares the
class with the highest score to the target. For samples of unequal length that are padded at their ends, pass
`lengths`, ``[batch]``: the result is the same as without padding. Penalties on activity are functions of one
layer's spikes.

>>> import torch
>>> from hibana import loss
>>> potentials = torch.tensor([[[0.0, 1.0]], [[3.0, 0.0]]])  # [T = 2, batch = 1, classes = 2]
>>> loss.MembraneMax().scores(potentials), loss.MembraneMean().scores(potentials)
(tensor([[3., 1.]]), tensor([[1.5000, 0.5000]]))
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from hibana.cells.values import positive
from hibana.nn import lengths as padding
from hibana.nn.first_spike import first_spike_times
from hibana.nn.penalties import rate_penalty, silence_penalty

__all__ = ["TET", "Count", "FirstSpike", "EveryStep", "MeanSquaredError", "MembraneLast", "MembraneMax"]
__all__ += ["MembraneMean", "Objective", "Rate", "first_spike_times", "named", "r_squared", "rate_penalty"]
__all__ += ["silence_penalty"]


@dataclass(frozen=True)
class Objective(ABC):
    """A loss and a decision from outputs over time, ``[T, batch, classes]``.

    Args:
        smoothing: the part of the target probability that is spread evenly over all classes, in [0, 1)
            (Szegedy et al. 2016, *Rethinking the inception architecture for computer vision*).
        weights: the weight of a sample of each class; 1 if ``None``.
    """

    smoothing: float = field(default=0.0, kw_only=True)
    weights: tuple[float, ...] | None = field(default=None, kw_only=True, repr=False)
    measure: ClassVar[str] = "accuracy"
    """The name of the result of :meth:`accuracy`; higher is better."""

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.weights is not None and not all(math.isfinite(w) and w >= 0 for w in self.weights):
            raise ValueError(
                f"weights must be finite and at least 0, one for each class, got {self.weights!r}"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {self.smoothing!r}")

    @abstractmethod
    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One score per class, ``[batch, classes]``; the class with the highest score is the decision."""

    @final
    def __call__(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The loss, a scalar, mean over the batch.

        Args:
            outputs: ``[T, batch, classes]``.
            target: class indices, ``[batch]``, or ``[T, batch]`` for :class:`EveryStep`.
            lengths: the lengths of padded samples, ``[batch]``.

        Raises:
            TypeError: if `target` or `lengths` have a wrong dtype.
            ValueError: if a shape is wrong, `lengths` are not in [1, T], or a class is not in [0, classes).
        """
        self._check(outputs, target)
        try:
            return self.loss(outputs, target, *_optional(lengths))
        except (IndexError, RuntimeError) as error:
            _check_range(outputs, target, error)
            raise

    @final
    def accuracy(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The fraction of samples with the highest score at the target; of equal scores, the first counts."""
        self._check(outputs, target)
        return self.right(outputs, target, *_optional(lengths))

    @final
    def cross_entropy(self, scores: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """``-w[target] log softmax(scores)[target]``; the mean over samples is weighted by ``w``."""
        weights = None if self.weights is None else scores.new_tensor(self.weights)
        return functional.cross_entropy(
            scores, target, weights, reduction=reduction, label_smoothing=self.smoothing
        )

    def loss(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The loss for checked arguments; by default the mean of ``-log softmax(scores)[target]``."""
        return self.cross_entropy(self.scores(outputs, *_optional(lengths)), target)

    def right(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The accuracy for checked arguments; :meth:`accuracy` checks them first."""
        return (self.scores(outputs, *_optional(lengths)).argmax(dim=1) == target).float().mean()

    def _check(self, outputs: Tensor, target: Tensor) -> None:
        """Raises if the shapes or the dtype of `target` don't fit this objective."""
        _check(outputs, target, outputs.shape[1:2], "one class index per sample")


def _optional(lengths: Tensor | None) -> tuple[Tensor, ...]:
    """`lengths` as arguments, or no arguments: a user's objective may not support lengths."""
    return () if lengths is None else (lengths,)


@final
@dataclass(frozen=True)
class Rate(Objective):
    """Cross-entropy of the firing rate, ``1/T sum_t s_t``: spikes per step, in [0, 1].

    Source: Fang et al. (2021), *Incorporating learnable membrane time constant to enhance
    learning of spiking neural networks* (the rate as the network's output).
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The firing rate of each class, ``[batch, classes]``."""
        return _mean(outputs, lengths)


@final
@dataclass(frozen=True)
class Count(Objective):
    """Cross-entropy of the spike count, ``sum_t s_t``.

    Source: Eshraghian et al. (2023), *Training spiking neural networks using lessons from deep learning*.
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The number of spikes of each class, ``[batch, classes]``."""
        return padding.masked(outputs, lengths).sum(dim=0)


@final
@dataclass(frozen=True)
class MembraneMax(Objective):
    """Cross-entropy of the highest potential, ``max_t v_t``.

    Source: Cramer, Stradmann, Schemmel & Zenke (2022), *The Heidelberg spiking data sets for the systematic
    evaluation of spiking neural networks*.
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The highest potential of each class, ``[batch, classes]``."""
        return padding.masked(outputs, lengths, -math.inf).amax(dim=0)


@final
@dataclass(frozen=True)
class MembraneLast(Objective):
    """Cross-entropy of the last potential, ``v_T``.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons* (the readout at the end of a sequence).
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The last potential of each class, ``[batch, classes]``."""
        return padding.last(outputs, lengths)


@final
@dataclass(frozen=True)
class MembraneMean(Objective):
    """Cross-entropy of the mean potential, ``1/T sum_t v_t``.

    Source: Eshraghian et al. (2023), *Training spiking neural networks using lessons from deep learning*.
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean potential of each class, ``[batch, classes]``."""
        return _mean(outputs, lengths)


@final
@dataclass(frozen=True)
class FirstSpike(Objective):
    """Cross-entropy of minus the time of the first spike, ``-t/tau``: the class that spikes first wins.

        t = sum_u prod_(w <= u) (1 - s_w)

    `t` is the number of steps before the first spike, or T without a spike. The product is differentiable:
    the gradient at a step before the first spike is the time that a spike at this step would save. This form
    is for neurons with a surrogate. For :class:`hibana.learn.SpikeTimeCell` and
    :class:`hibana.learn.EventPropCell` set `exact`: `t` is then :func:`first_spike_times`, which can lie
    between two steps, and its gradient is that of the spike time.

    Args:
        tau: divisor of the time in steps; smaller values make the softmax sharper.
        exact: whether to use :func:`first_spike_times`, for neurons with gradients of their spike times.

    Source: Mostafa (2018), *Supervised learning based on temporal coding in spiking neural networks* (the
    softmax over negative spike times).

    >>> import torch
    >>> FirstSpike().scores(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]]))
    tensor([[-1., -3.]])
    """

    tau: float = 1.0
    exact: bool = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        positive("tau", self.tau)

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Minus the time of the first spike of each class, divided by `tau`, ``[batch, classes]``."""
        if not self.exact:
            return padding.masked((1 - outputs).cumprod(dim=0), lengths).sum(dim=0) / -self.tau
        times = first_spike_times(padding.masked(outputs, lengths))
        if lengths is not None:
            times = torch.minimum(times, lengths.to(times)[:, None])
        return times / -self.tau


@final
@dataclass(frozen=True)
class TET(Objective):
    """Temporal efficient training: the mean over time of the cross-entropy at each step.

        L = (1 - weight) * 1/T sum_t CE(v_t, target) + weight * mean (v - potential)^2

    Args:
        weight: weight of the regulariser, in [0, 1].
        potential: the value to which the regulariser draws every output; in the paper, the threshold.

    Source: Deng, Li, Zhang & Gu (2022), *Temporal efficient training of spiking neural network via gradient
    re-weighting*.
    """

    weight: float = 0.0
    potential: float = 1.0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight!r}")

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean output of each class, ``[batch, classes]``."""
        return _mean(outputs, lengths)

    def loss(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean of the cross-entropy at each step, plus the regulariser."""
        steps = outputs.shape[0]
        reduction = "mean" if lengths is None else "none"
        entropy = self.cross_entropy(outputs.flatten(0, 1), target.repeat(steps), reduction)
        if lengths is not None:
            weight = 1.0 if self.weights is None else outputs.new_tensor(self.weights)[target].mean()
            entropy = _mean(entropy.view(steps, -1), lengths).mean() / weight
        if self.weight == 0:
            return entropy
        regularizer = _mean((outputs - self.potential).square(), lengths).mean()
        return (1 - self.weight) * entropy + self.weight * regularizer


@final
@dataclass(frozen=True)
class EveryStep(Objective):
    """The cross-entropy of the outputs with a target at each step.

        L = mean over the batch of 1/T sum_t CE(v_t, target_t)

    `target` is ``[T, batch]``; steps with the target -100 are ignored, and the mean is over the other steps
    of the sample. The scores are the outputs, ``[T, batch, classes]``, and the accuracy is over steps.

    Source: Graves (2012), *Supervised sequence labelling with recurrent neural networks* (framewise
    classification).
    """

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The outputs, ``[T, batch, classes]``."""
        return outputs

    def loss(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean cross-entropy over all steps with a target."""
        entropy = self.cross_entropy(outputs.flatten(0, 1), target.flatten(), "none").view_as(target)
        has_target = _has_target(target, lengths)
        return ((entropy * has_target).sum(dim=0) / has_target.sum(dim=0).clamp(min=1)).mean()

    def right(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The fraction of steps with a target whose highest score is at the target."""
        has_target = _has_target(target, lengths)
        return ((outputs.argmax(dim=2) == target) & has_target).sum() / has_target.sum()

    def _check(self, outputs: Tensor, target: Tensor) -> None:
        """Raises if the shapes or the dtype of `target` don't fit this objective."""
        _check(outputs, target, outputs.shape[:2], "one class index per step and sample")


@final
@dataclass(frozen=True)
class MeanSquaredError(Objective):
    """The squared error of the score of one output, ``(y - target)^2``, for regression.

    :meth:`accuracy` returns ``1 - mean (y - target)^2``: the explained part of the variance for targets with
    standard deviation 1. For other targets, see :func:`r_squared`.

    Args:
        read: the objective whose score is the prediction.
    """

    read: Objective = field(default_factory=MembraneMean)
    measure: ClassVar[str] = "explained"

    def scores(self, outputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The scores of the objective `read`, ``[batch, 1]``."""
        return self.read.scores(outputs, *_optional(lengths))

    def loss(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean squared difference between the score and `target`."""
        return (self.scores(outputs, *_optional(lengths))[:, 0] - target).square().mean()

    def right(self, outputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One minus the mean squared error."""
        return 1 - self.loss(outputs, target, *_optional(lengths))

    def _check(self, outputs: Tensor, target: Tensor) -> None:
        """Raises if the shapes or the dtype of `target` don't fit this objective."""
        if outputs.ndim != 3 or outputs.shape[2] != 1 or target.shape != outputs.shape[1:2]:
            raise ValueError(
                f"outputs must be [T, batch, 1] and target [batch], got shapes {tuple(outputs.shape)} and "
                f"{tuple(target.shape)}"
            )
        if not target.is_floating_point():
            raise TypeError(f"target must hold quantities, floating point, got {target.dtype}")


_BY_NAME: dict[str, type[Objective]] = {
    "rate": Rate,
    "count": Count,
    "membrane-max": MembraneMax,
    "membrane-mean": MembraneMean,
    "membrane-last": MembraneLast,
    "first-spike": FirstSpike,
    "tet": TET,
}
NAMES = tuple(_BY_NAME)
"""The names of objectives for :func:`named`."""


def named(name: str, smoothing: float = 0.0, weights: tuple[float, ...] | None = None) -> Objective:
    """The objective called `name` with default arguments except `smoothing` and `weights`.

    >>> named("first-spike")
    FirstSpike(smoothing=0.0, tau=1.0, exact=False)

    Raises:
        ValueError: if no objective has this name; the message lists all names.
    """
    if name not in _BY_NAME:
        raise ValueError(f"loss must be one of {', '.join(_BY_NAME)}; got {name!r}")
    return _BY_NAME[name](smoothing=smoothing, weights=weights)


def r_squared(answers: Tensor, target: Tensor) -> float:
    """The coefficient of determination, ``1 - sum (y - target)^2 / sum (target - mean target)^2``.

    The mean is over `target`, as in scikit-learn's ``r2_score``: 1 is exact, 0 is as good as predicting the
    mean, and negative values are worse. NaN if all targets are equal.

    >>> r_squared(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    0.5
    """
    answers, target = answers.double(), target.double()
    deviation = (target - target.mean()).square().sum().item()
    return 1 - (answers - target).square().sum().item() / deviation if deviation > 0 else math.nan


def _mean(over_time: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean ``[batch, ...]`` of ``[T, batch, ...]`` over the steps before the end of each sample."""
    if lengths is None:
        return over_time.mean(dim=0)
    count = padding.checked(lengths, over_time).view(-1, *[1] * (over_time.ndim - 2))
    return padding.masked(over_time, lengths).sum(dim=0) / count


def _has_target(target: Tensor, lengths: Tensor | None) -> Tensor:
    """Whether each element of `target`, ``[T, batch]``, is a class before the end of the sample."""
    has_target = target != -100
    return has_target if lengths is None else has_target & padding.within(lengths, target)


def _check_range(outputs: Tensor, target: Tensor, error: Exception) -> None:
    """Raises ValueError from `error` if a class index in `target` is no class of `outputs`."""
    classes = outputs.shape[2]
    wrong = target[(target < 0) | (target >= classes)]
    if not target.is_floating_point() and wrong.numel():
        raise ValueError(
            f"target must hold class indices in [0, {classes}), as outputs have {classes} classes, got "
            f"{wrong[0].item()}"
        ) from error


def _check(outputs: Tensor, target: Tensor, shape: torch.Size, contents: str) -> None:
    """Raises if `outputs` is not ``[T, batch, classes]``, or `target` not class indices of `shape`."""
    if outputs.ndim != 3 or outputs.shape[0] == 0:
        raise ValueError(
            f"outputs must be [T, batch, classes] with T at least 1, got shape {tuple(outputs.shape)}"
        )
    if target.shape != shape:
        raise ValueError(f"target must hold {contents}, {list(shape)}, got shape {tuple(target.shape)}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must hold class indices, int64, got {target.dtype}")
