"""Out of spikes: from what the last layer emits over time to a loss, and to a decision.

An *objective* is a small immutable object. Its :meth:`~Objective.scores` turn ``[T, batch, classes]`` into
``[batch, classes]``; calling it gives the loss, and :meth:`~Objective.accuracy` counts the highest score.
Penalties on activity are functions of one layer's spikes. Nothing here runs a network or keeps a count.

>>> import torch
>>> from hibana import loss
>>> potentials = torch.tensor([[[0.0, 1.0]], [[3.0, 0.0]]])  # [T = 2, batch = 1, classes = 2]
>>> loss.MembraneMax().scores(potentials), loss.MembraneMean().scores(potentials)
(tensor([[3., 1.]]), tensor([[1.5000, 0.5000]]))
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, distributed
from torch.nn import functional

__all__ = [
    "TET",
    "Count",
    "FirstSpike",
    "MembraneMax",
    "MembraneMean",
    "Objective",
    "Rate",
    "named",
    "rate_penalty",
    "silence_penalty",
]


@dataclass(frozen=True)
class Objective(ABC):
    """What the outputs over time, ``[T, batch, classes]``, are asked for.

    Args:
        smoothing: the part of the wanted probability that is spread evenly over all classes, in [0, 1)
            (Szegedy et al. 2016, *Rethinking the inception architecture for computer vision*).
    """

    smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {self.smoothing!r}")

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """One score per class, ``[batch, classes]``, the highest of which is the decision."""

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, mean over the batch; `target` holds class indices, ``[batch]``.

        Raises:
            ValueError: if `outputs` is not ``[T, batch, classes]`` or `target` not ``[batch]``.
        """
        _check(outputs, target)
        return self.loss(outputs, target)

    @final
    def accuracy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The fraction of the batch whose highest score is the target's; of equals, the first counts."""
        _check(outputs, target)
        return (self.scores(outputs).argmax(dim=1) == target).float().mean()

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What calling the objective gives, for arguments that have been checked."""


@dataclass(frozen=True)
class _CrossEntropy(Objective):
    """``-log softmax(scores)[target]``."""

    @final
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(self.scores(outputs), target, label_smoothing=self.smoothing)


@final
@dataclass(frozen=True)
class Rate(_CrossEntropy):
    """Cross-entropy of the firing rate, ``1/T sum_t s_t``: spikes per step, in [0, 1].

    Source: Fang et al. (2021), *Incorporating learnable membrane time constant to enhance
    learning of spiking neural networks* (the rate as the network's output).
    """

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=0)


@final
@dataclass(frozen=True)
class Count(_CrossEntropy):
    """Cross-entropy of the spike count, ``sum_t s_t``.

    Source: Eshraghian et al. (2023), *Training spiking neural networks using lessons from deep learning*.
    """

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.sum(dim=0)


@final
@dataclass(frozen=True)
class MembraneMax(_CrossEntropy):
    """Cross-entropy of the highest potential, ``max_t v_t``.

    Source: Cramer, Stradmann, Schemmel & Zenke (2022), *The Heidelberg spiking data sets for the systematic
    evaluation of spiking neural networks*.
    """

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.amax(dim=0)


@final
@dataclass(frozen=True)
class MembraneMean(_CrossEntropy):
    """Cross-entropy of the mean potential, ``1/T sum_t v_t``.

    Source: Eshraghian et al. (2023), *Training spiking neural networks using lessons from deep learning*.
    """

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=0)


@final
@dataclass(frozen=True)
class FirstSpike(_CrossEntropy):
    """Cross-entropy of minus the time to the first spike, ``-t/tau``: the earliest wins.

        t = sum_u prod_(w <= u) (1 - s_w)

    which is the number of steps before the first spike, and T where there is none. The product makes it
    differentiable: the gradient of an unspent step is the time that a spike there would have saved.

    Args:
        tau: in steps; the smaller, the sharper.

    Source: Mostafa (2018), *Supervised learning based on temporal coding in spiking neural networks* (the
    softmax over negative spike times).

    >>> import torch
    >>> FirstSpike().scores(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]]))
    tensor([[-1., -3.]])
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(f"tau must be positive and finite, got {self.tau!r}")

    def scores(self, outputs: Tensor) -> Tensor:
        return (1 - outputs).cumprod(dim=0).sum(dim=0) / -self.tau


@final
@dataclass(frozen=True)
class TET(Objective):
    """Temporal efficient training: the cross-entropy at each step, averaged, not that of the average.

        L = (1 - weight) * 1/T sum_t CE(v_t, target) + weight * mean (v - potential)^2

    Args:
        weight: of the regulariser, in [0, 1].
        potential: what the regulariser draws every output to; the paper takes the threshold.

    Source: Deng, Li, Zhang & Gu (2022), *Temporal efficient training of spiking neural network via gradient
    re-weighting*.
    """

    weight: float = 0.0
    potential: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight!r}")

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=0)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        steps = outputs.shape[0]
        each = functional.cross_entropy(
            outputs.flatten(0, 1), target.repeat(steps), label_smoothing=self.smoothing
        )
        if self.weight == 0:
            return each
        drawn = (outputs - self.potential).square().mean()
        return (1 - self.weight) * each + self.weight * drawn


def rate_penalty(spikes: Tensor, target: float) -> Tensor:
    """How far a layer's firing rate lies above `target`: ``max(0, r/target - 1)^2``, a scalar.

    `r` is the mean over time, batch and neurons, in spikes per step. Measured in units of the target, so
    that one weight suits every target. Zero, with no gradient, at and below the target. In distributed
    training the mean is over the batches of all processes, each of which must make this call, and the
    gradients, averaged, are those of one process with the joined batch.

    Args:
        spikes: ``[T, batch, ...]`` of one layer.
        target: spikes per neuron and step, in (0, 1].

    Source: Cramer et al. (2022), *The Heidelberg spiking data sets …* (the upper bound), here
    on the layer's mean.

    >>> import torch
    >>> rate_penalty(torch.ones(4, 1, 2), target=0.5)
    tensor(1.)
    """
    _check_rate("target", target)
    return functional.relu(_over_processes(spikes.mean()) / target - 1).square()


def silence_penalty(spikes: Tensor, least: float) -> Tensor:
    """How far single neurons lie below a rate: ``mean_n max(0, 1 - r_n/least)^2``, a scalar.

    `r_n` is neuron n's mean over time and batch: a neuron that never fires in the batch counts 1, one that
    fires at `least` or more 0. A silent neuron can answer only where its surrogate is not zero below the
    threshold; ``Step``, whose derivative is zero there, gives it no gradient. In distributed training the
    rates are over the batches of all processes, as in :func:`rate_penalty`.

    Args:
        spikes: ``[T, batch, ...]`` of one layer.
        least: spikes per neuron and step, in (0, 1].

    Source: Cramer et al. (2022), *The Heidelberg spiking data sets …* (the lower bound), here
    on rates.
    """
    _check_rate("least", least)
    rates = _over_processes(spikes.flatten(0, 1).mean(dim=0))
    return functional.relu(1 - rates / least).square().mean()


_BY_NAME: dict[str, type[Objective]] = {
    "rate": Rate,
    "count": Count,
    "membrane-max": MembraneMax,
    "membrane-mean": MembraneMean,
    "first-spike": FirstSpike,
    "tet": TET,
}


def named(name: str, smoothing: float = 0.0) -> Objective:
    """The objective called `name`, at its defaults but for `smoothing`.

    >>> named("first-spike")
    FirstSpike(smoothing=0.0, tau=1.0)

    Raises:
        ValueError: if there is none of that name; the message lists them all.
    """
    if name not in _BY_NAME:
        raise ValueError(f"loss must be one of {', '.join(_BY_NAME)}; got {name!r}")
    return _BY_NAME[name](smoothing=smoothing)


def _over_processes(mean: Tensor) -> Tensor:
    """The mean of all processes' `mean`, whose gradient flows to each process's own part of it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    joint = mean.detach().clone()
    distributed.all_reduce(joint)
    return mean + (joint / distributed.get_world_size() - mean.detach())


def _check(outputs: Tensor, target: Tensor) -> None:
    if outputs.ndim != 3 or outputs.shape[0] == 0:
        raise ValueError(
            f"outputs must be [T, batch, classes] with T at least 1, got shape {tuple(outputs.shape)}"
        )
    if target.shape != outputs.shape[1:2]:
        raise ValueError(
            f"target must hold one class index per sample, [{outputs.shape[1]}], "
            f"got shape {tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise TypeError(f"target must hold class indices, int64, got {target.dtype}")


def _check_rate(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be a rate in (0, 1], in spikes per neuron and step, got {value!r}")
