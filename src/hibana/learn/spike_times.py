"""Neurons with gradients of their spike times by EventProp: spikes at steps, or between steps."""

from typing import final

import torch
from torch import Tensor

from hibana.cells import Cell, spike
from hibana.cells.spiking import decay
from hibana.cells.values import positive, time_constant

__all__ = ["EventPropCell", "SpikeTimeCell", "spikes_at"]


class _CurrentDriven(Cell):
    """The parameters of a leaky neuron that is driven by a synaptic current, and their checks."""

    def __init__(
        self, tau_synapse: float = 5.0, tau: float = 20.0, threshold: float = 1.0, limit: float = 100.0
    ) -> None:
        super().__init__()
        self.tau_synapse = time_constant("tau_synapse", tau_synapse)
        self.tau = time_constant("tau", tau)
        self.threshold, self.limit = positive("threshold", threshold), positive("limit", limit)

    def extra_repr(self) -> str:
        """The parameters, for the representation of the cell."""
        names = ("tau_synapse", "tau", "threshold", "limit")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


@final
class EventPropCell(_CurrentDriven):
    """A neuron driven by a synaptic current, with the gradient of its spike times instead of a surrogate.

        i = (1 - 1/tau_synapse) i_previous + input_
        v = (1 - 1/tau) v_previous (1 - s_previous) + i
        s = H(v - threshold)

    A spike at step t moves by ``-1/rise`` steps for each unit that `v` is higher; ``rise`` is the change of
    `v` in this step. Moving the spike moves its effect from step t to step t + 1, at the synapses and at the
    reset, after which `v` rises by `i` per step. With the gradient ``G`` of the output and the gradient ``V``
    of the potential after the reset,

        dL/dv_t = (G_t - G_(t+1) + i_t V_(t+1)) / rise        if the neuron spiked at step t
                  gradient through the leak                   otherwise

    For short steps this is EventProp. The gradient ignores spikes that appear or vanish: a neuron that never
    spikes has no gradient, so begin with weights under which most neurons spike.

    Args:
        tau_synapse: time constant of the synaptic current, in steps, at least 1.
        tau: membrane time constant, in steps, at least 1.
        threshold: the neuron spikes if ``v > threshold``.
        limit: maximum of ``1 / rise``, in steps.

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

    def forward(  # type: ignore[override]
        self,
        input_: Tensor,
        i_previous: Tensor,
        v_previous: Tensor,
        moved_previous: Tensor,
        s_previous: Tensor,
    ) -> tuple[Tensor, ...]:
        """The next state; `moved` is 0 and carries the gradient of the spike time."""
        i = i_previous * decay(self.tau_synapse) + input_
        rested = v_previous * (1 - s_previous.detach()) + moved_previous * i_previous.detach()
        v = rested * decay(self.tau) + i
        above, rise = v - self.threshold, v - rested
        crossed = spike(above, torch.where(above > 0, 1 / rise.clamp(min=1 / self.limit), 0))
        moved = crossed - crossed.detach()
        return i, v, moved, crossed - moved_previous


@final
class SpikeTimeCell(_CurrentDriven):
    """A neuron that spikes between two steps, with the exact gradient of its spike times.

        i = (1 - 1/tau_synapse) i_previous + input_
        v = (1 - 1/tau) u + i                      u = v_previous; passed_previous i_previous after a spike
        passed = (v - threshold) / (v - u)         if v > threshold, else 0
        s = passed + (1 - passed_previous)         the second term after a spike at the previous step

    Within a step the potential is a straight line; `passed` is the fraction of the step after the line
    crosses the threshold. The spike is split between two steps: ``passed`` at its step and ``1 - passed`` at
    the next, so that its effect changes smoothly with its time. The same holds for the reset, after which the
    potential has risen for ``passed`` steps. Automatic differentiation of this step is therefore EventProp of
    this simulation without a discretisation error: it agrees with finite differences. For short steps the
    simulation approaches continuous time.

    The outputs are numbers in [0, 2), not spikes of 0 and 1. The gradient ignores spikes that appear or
    vanish: a neuron that never spikes has no gradient, so begin with weights under which most neurons spike.

    Args:
        tau_synapse: time constant of the synaptic current, in steps, at least 1.
        tau: membrane time constant, in steps, at least 1.
        threshold: the neuron spikes if ``v > threshold``.
        limit: ``v - u`` is at least ``1 / limit`` in the formula, to bound the derivative of a spike time.

    Raises:
        ValueError: if a time constant is below 1, the threshold or the limit not positive.

    Source: Wunderlich & Pehle (2021), *Event-based backpropagation can compute exact gradients for spiking
    neural networks*; Hanuschkin, Kunkel, Helias, Morrison & Diesmann (2010), *A general and efficient method
    for incorporating precise spike times in globally time-driven simulations* (spikes between steps).

    >>> import torch, hibana as hb
    >>> layer = hb.OverTime(hb.learn.SpikeTimeCell(tau_synapse=5.0, tau=20.0))
    >>> drive = torch.full([6, 1, 1], 0.2, requires_grad=True)
    >>> time = hb.loss.first_spike_times(layer(drive))
    >>> round(time.item(), 2)
    2.98
    """

    emits_spikes = False

    def forward(  # type: ignore[override]
        self,
        input_: Tensor,
        i_previous: Tensor,
        v_previous: Tensor,
        passed_previous: Tensor,
        s_previous: Tensor,
    ) -> tuple[Tensor, ...]:
        """The next state; `passed` is the fraction of the step after a spike, 0 without a spike."""
        i = i_previous * decay(self.tau_synapse) + input_
        spiked = passed_previous > 0
        u = torch.where(spiked, passed_previous * i_previous, v_previous)
        v = u * decay(self.tau) + i
        rise = (v - u).clamp(min=1 / self.limit)
        passed = torch.where(v > self.threshold, ((v - self.threshold) / rise).clamp(max=1.0), 0)
        return i, v, passed, passed + torch.where(spiked, 1 - passed_previous, 0)


def spikes_at(times: Tensor, steps: int) -> Tensor:
    """One spike for each of `times`, split between the two nearest steps, ``[steps, ...]``.

        s_k = max(0, 1 - |k - t|)

    Parts before step 0 or after the last step are omitted. :func:`hibana.loss.first_spike_times` is the
    inverse.

    Args:
        times: spike times in steps, ``[...]``.
        steps: number of steps, at least 1.

    Raises:
        TypeError: if `times` is not a floating-point tensor.
        ValueError: if `steps` is below 1.

    >>> import torch
    >>> spikes_at(torch.tensor([1.0, 1.75]), 3)
    tensor([[0.0000, 0.0000],
            [1.0000, 0.2500],
            [0.0000, 0.7500]])
    """
    if not isinstance(times, Tensor) or not times.is_floating_point():
        kind = times.dtype if isinstance(times, Tensor) else type(times).__name__
        raise TypeError(f"times must be a floating-point tensor, got {kind}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    clock = torch.arange(steps, dtype=times.dtype, device=times.device)
    return (1 - (clock.view(-1, *[1] * times.ndim) - times).abs()).relu()
