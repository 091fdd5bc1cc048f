"""Gradients of spike times: a neuron whose backward is the discrete adjoint of EventProp; first spikes."""

import math
from typing import final

import torch
from torch import Tensor

from hibana.cells import Cell, spike
from hibana.cells.spiking import decay

__all__ = ["EventPropCell", "first_spike_times"]


@final
class EventPropCell(Cell):
    """A neuron driven through a synaptic current, whose gradient is that of its spike times.

        i = (1 - 1/tau_synapse) i_previous + input_
        v = (1 - 1/tau) v_previous (1 - s_previous) + i
        s = H(v - threshold)

    No surrogate: a spike at step t moves by ``-1/rise`` steps for each unit that `v` is higher, with ``rise``
    the change of `v` in that step. Moving it takes its effect from step t to step t + 1, at the synapses and
    at the reset, after which `v` rises by `i` a step. So with the gradient ``G`` of what is emitted, and that
    of the potential after the reset ``V``,

        dL/dv_t = (G_t - G_(t+1) + i_t V_(t+1)) / rise        where it spiked
                  what the leak passes back                   elsewhere

    which for short steps is EventProp. That spikes appear and vanish is left out: a neuron that never spikes
    has no gradient, so begin with weights under which most do.

    Args:
        tau_synapse: time constant of the synaptic current, in steps, at least 1.
        tau: membrane time constant, in steps, at least 1.
        threshold: spikes where ``v > threshold``.
        limit: what ``1 / rise`` is at most, in steps.

    Raises:
        ValueError: if a time constant is below 1, the threshold or the limit not positive.

    Source: Wunderlich & Pehle (2021), *Event-based backpropagation can compute exact gradients for spiking
    neural networks*.

    >>> import torch, hibana as hb
    >>> layer = hb.OverTime(hb.learn.EventPropCell(tau_synapse=5.0, tau=20.0))
    >>> drive = torch.full([6, 1, 1], 0.2, requires_grad=True)
    >>> time = hb.learn.first_spike_times(layer(drive))
    >>> time.item()
    2.0
    >>> time.sum().backward()  # a stronger drive spikes earlier
    >>> bool((drive.grad[:3] < 0).all())
    True
    """

    emits_spikes = True

    def __init__(
        self, tau_synapse: float = 5.0, tau: float = 20.0, threshold: float = 1.0, limit: float = 100.0
    ) -> None:
        super().__init__()
        for name, value, least in (("tau_synapse", tau_synapse, 1.0), ("tau", tau, 1.0)):
            if not value >= least:
                raise ValueError(f"{name} must be a number of time steps, at least 1, got {value!r}")
        for name, value in (("threshold", threshold), ("limit", limit)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        self.tau_synapse, self.tau, self.threshold, self.limit = tau_synapse, tau, threshold, limit

    def extra_repr(self) -> str:
        names = ("tau_synapse", "tau", "threshold", "limit")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(  # type: ignore[override]
        self,
        input_: Tensor,
        i_previous: Tensor,
        v_previous: Tensor,
        moved_previous: Tensor,
        s_previous: Tensor,
    ) -> tuple[Tensor, ...]:
        """The next state; `moved` is 0, and carries the gradient of where in time the spike was."""
        i = i_previous * decay(self.tau_synapse) + input_
        rested = v_previous * (1 - s_previous.detach()) + moved_previous * i_previous.detach()
        v = rested * decay(self.tau) + i
        above, rise = v - self.threshold, v - rested
        crossed = spike(above, torch.where(above > 0, 1 / rise.clamp(min=1 / self.limit), 0))
        moved = crossed - crossed.detach()
        return i, v, moved, crossed - moved_previous


def first_spike_times(spikes: Tensor) -> Tensor:
    """The step of each neuron's first spike, T where it has none, differentiable in time.

    The gradient is that of a spike which moves from its step to the next: with respect to `spikes`, the
    number of the step at these two, 0 elsewhere. It is what :class:`EventPropCell` takes.

    Args:
        spikes: ``[T, ...]``.

    Returns:
        ``[...]``, in steps.

    Raises:
        TypeError: if `spikes` is no floating-point tensor.
        ValueError: if it has no steps.
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        got = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, got {got}")
    if spikes.ndim < 1 or not len(spikes):
        raise ValueError(f"spikes must be [T, ...], T at least 1, got shape {tuple(spikes.shape)}")
    values = spikes.detach()
    first = (values > 0) & (values.cumsum(0) == 1)
    first[-1] = False  # a spike at the last step can't move to the next
    after = torch.zeros_like(first)
    after[1:] = first[:-1]
    steps = torch.arange(len(spikes), dtype=spikes.dtype, device=spikes.device)
    steps = steps.view(-1, *[1] * (spikes.ndim - 1))
    there = values.amax(0) > 0
    time = torch.where(there, values.argmax(0).to(spikes.dtype), float(len(spikes)))
    moves = torch.where(first | after, steps, 0) * (spikes - values)
    return time + moves.sum(0)
