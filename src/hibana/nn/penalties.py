"""Penalties on too much and too little activity, of one layer's spikes."""

import math

import torch
from torch import Tensor, distributed
from torch.nn import functional

from hibana.nn import lengths as padding

__all__ = ["rate_penalty", "silence_penalty"]


def rate_penalty(spikes: Tensor, target: float, lengths: Tensor | None = None) -> Tensor:
    """How far a layer's firing rate lies above `target`: ``max(0, r/target - 1)^2``, a scalar.

    `r` is the mean over time, batch and neurons, in spikes per step. Measured in units of the target, so
    that one weight suits every target. Zero, with no gradient, at and below the target. In distributed
    training the mean is over the batches of all processes, each of which must make this call, and the
    gradients, averaged, are those of one process with the joined batch.

    Args:
        spikes: ``[T, batch, ...]`` of one layer.
        target: spikes per neuron and step, in (0, 1].
        lengths: of samples that are padded, ``[batch]``: the mean is over their own steps.

    Source: Cramer et al. (2022), *The Heidelberg spiking data sets …* (the upper bound), here
    on the layer's mean.

    >>> import torch
    >>> rate_penalty(torch.ones(4, 1, 2), target=0.5)
    tensor(1.)
    """
    _check_rate("target", target)
    mean = _over_processes(_mean(spikes), None) if lengths is None else _mean(_rate(spikes, lengths))
    return functional.relu(mean / target - 1).square()


def silence_penalty(spikes: Tensor, least: float, lengths: Tensor | None = None) -> Tensor:
    """How far single neurons lie below a rate: ``mean_n max(0, 1 - r_n/least)^2``, a scalar.

    `r_n` is neuron n's mean over time and batch: a neuron that never fires in the batch counts 1, one that
    fires at `least` or more 0. A silent neuron can answer only where its surrogate is not zero below the
    threshold; ``Step``, whose derivative is zero there, gives it no gradient. In distributed training the
    rates are over the batches of all processes, as in :func:`rate_penalty`.

    Args:
        spikes: ``[T, batch, ...]`` of one layer.
        least: spikes per neuron and step, in (0, 1].
        lengths: of samples that are padded, ``[batch]``: the means are over their own steps.

    Source: Cramer et al. (2022), *The Heidelberg spiking data sets …* (the lower bound), here
    on rates.
    """
    _check_rate("least", least)
    return functional.relu(1 - _rate(spikes, lengths) / least).square().mean()


def _rate(spikes: Tensor, lengths: Tensor | None) -> Tensor:
    """Each neuron's mean over time and batch, over the batches of all processes."""
    if lengths is None:
        return _over_processes(_mean(spikes, dim=(0, 1)), None)
    steps = padding.checked(lengths, spikes).sum()
    return _over_processes(padding.masked(spikes, lengths).sum(dim=(0, 1)) / steps, steps)


def _mean(values: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """``values.mean(dim)``, to the bit, whose gradient is one number expanded and not one for each value."""
    count = values.numel() if dim is None else math.prod(values.shape[d] for d in dim)
    if values.dtype in (torch.float16, torch.bfloat16):  # which do not count so far
        return (values.sum(dim, dtype=torch.float32) / count).to(values.dtype)
    return values.sum(dim) / count


def _over_processes(mean: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of all processes' `mean`, by their `weight`, whose gradient flows to each process's own part.

    Averaged over the processes, the gradients are those of one process with the joined batch.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    if weight is not None:
        whole = weight.detach().to(mean.dtype).clone()
        distributed.all_reduce(whole)
        mean = mean * (weight * (distributed.get_world_size() / whole))
    joint = mean.detach().clone()
    distributed.all_reduce(joint)
    return mean + (joint / distributed.get_world_size() - mean.detach())


def _check_rate(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be a rate in (0, 1], in spikes per neuron and step, got {value!r}")
