"""Penalties on too high and too low firing rates of a layer."""

import math

import torch
from torch import Tensor, distributed
from torch.nn import functional

from hibana.nn import lengths as padding

__all__ = ["rate_penalty", "silence_penalty"]


def rate_penalty(spikes: Tensor, target: float, lengths: Tensor | None = None) -> Tensor:
    """A penalty on a layer's firing rate above `target`: ``max(0, r/target - 1)^2``, a scalar.

    `r` is the mean over time, batch and neurons, in spikes per step. The penalty is relative to the target,
    so that one weight suits every target; it is zero, with zero gradient, up to the target. In distributed
    training the mean is over the batches of all processes, which must all call this function. The average of
    the processes' gradients then equals the gradient of one process with the joined batch.

    Args:
        spikes: the spikes of one layer, ``[T, batch, ...]``.
        target: spikes per neuron and step, in (0, 1].
        lengths: the lengths of padded samples, ``[batch]``; steps after a sample's end don't count.

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
    """A penalty on neurons with a firing rate below `least`: ``mean_n max(0, 1 - r_n/least)^2``, a scalar.

    `r_n` is the mean of neuron n over time and batch: a neuron that never fires in the batch adds 1 to the
    mean, a neuron with rate `least` or more adds 0. A silent neuron only gets a gradient if its surrogate is
    nonzero below the threshold, unlike ``Step``. In distributed training the rates are over the batches of
    all processes, as in :func:`rate_penalty`.

    Args:
        spikes: the spikes of one layer, ``[T, batch, ...]``.
        least: spikes per neuron and step, in (0, 1].
        lengths: the lengths of padded samples, ``[batch]``; steps after a sample's end don't count.

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
    """Bitwise ``values.mean(dim)``, but its gradient is one number, expanded without a copy."""
    count = values.numel() if dim is None else math.prod(values.shape[d] for d in dim)
    if values.dtype in (torch.float16, torch.bfloat16):  # they can't represent large counts
        return (values.sum(dim, dtype=torch.float32) / count).to(values.dtype)
    return values.sum(dim) / count


def _over_processes(mean: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of `mean` over all processes, whose gradient goes to the `mean` of this process.

    The average of the processes' gradients equals the gradient of one process with the joined batch.

    Args:
        mean: the mean of this process.
        weight: its weight, such as its number of steps; None for equal weights.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    if weight is not None:
        total = weight.detach().to(mean.dtype).clone()
        distributed.all_reduce(total)
        mean = mean * (weight * (distributed.get_world_size() / total))
    joint = mean.detach().clone()
    distributed.all_reduce(joint)
    return mean + (joint / distributed.get_world_size() - mean.detach())


def _check_rate(name: str, value: float) -> None:
    """Raises if `value`, called `name`, is not in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be a rate in (0, 1], in spikes per neuron and step, got {value!r}")
