"""The time of a neuron's first spike, which may lie between two steps.

Losses of spike times are in :mod:`hibana.nn.loss`.
"""

import torch
from torch import Tensor

__all__ = ["first_spike_times"]


def first_spike_times(spikes: Tensor) -> Tensor:
    """The time of each neuron's first spike, in steps; T for a neuron without spikes.

        t = k + 1 - s_k        k: the first step at which s_k > 0

    A spike of 1 at step k is at time k. :class:`hibana.learn.SpikeTimeCell` emits a spike between two steps
    as a part of each: ``s_k = k + 1 - t`` and ``s_(k+1) = t - k``. The gradient with respect to `spikes` is
    -1 at step k and 0 elsewhere; that cell and :class:`hibana.learn.EventPropCell` read it as the gradient of
    the spike's time. A neuron that does not spike gets no gradient.

    Args:
        spikes: ``[T, ...]``, at least 0.

    Returns:
        ``[...]``, in steps.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has no steps.

    >>> import torch
    >>> first_spike_times(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.25, 0.0], [0.0, 0.75, 0.0]]))
    tensor([1.0000, 1.7500, 3.0000])
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        kind = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, got {kind}")
    if spikes.ndim < 1 or not len(spikes):
        raise ValueError(f"spikes must be [T, ...], T at least 1, got shape {tuple(spikes.shape)}")
    is_spike = spikes.detach() > 0
    step = is_spike.to(torch.uint8).argmax(0, keepdim=True)  # of equal values, the first
    time = (step + 1).to(spikes.dtype) - spikes.gather(0, step)
    return torch.where(is_spike.any(0), time[0], float(len(spikes)))
