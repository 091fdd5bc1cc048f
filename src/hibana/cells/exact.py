"""Leaky integrate-and-fire with an exponential synaptic current, integrated exactly as in Brian2 or NEST."""

import math
from typing import final

import torch
from torch import Tensor

from hibana.cells.ranges import AtLeast
from hibana.cells.spiking import Spiking
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Value, between, time_constant

__all__ = ["ExactLIFCell"]


@final
class ExactLIFCell(Spiking):
    """Leaky integrate-and-fire with a synaptic current, integrated exactly, and a refractory period.

    The solution of ``tau v' = i - v``, ``tau_synapse i' = -i`` after one step; input joins the current after
    the update:

        v0, i0 = (0, 0)  where r_previous > 0, else  (v_previous, i_previous)
        v = v0 * exp(-1/tau) + i0 * tau_synapse / (tau_synapse - tau) * (exp(-1/tau_synapse) - exp(-1/tau))
        i = i0 * exp(-1/tau_synapse) + input_
        s = H(v - threshold)
        r = period  if s, else  r_previous - 1  where r_previous > 0, else  0

    After a spike in step k, potential and current are 0, and all input of the steps k to ``k + period - 1``
    is lost. Potentials are relative to rest and reset, and in the unit of the current.

    The order is Brian2's (update, threshold, input, reset) with the equations ``(unless refractory)`` of
    Shiu et al. (2024), where 2.2 ms are a `period` of 22 steps of 0.1 ms. With `keeps_current`, the current
    goes on and receives input after a spike, and only the potential is held, for ``period - 1`` steps: NEST's
    ``iaf_psc_exp`` with a ``t_ref`` of ``period - 1`` steps.

    Args:
        tau: membrane time constant in time steps.
        tau_synapse: time constant of the synaptic current in time steps, other than `tau`.
        threshold: spikes where ``v > threshold``.
        period: the number of steps from a spike's own step on whose input is lost, at least 1; a tensor has
            one number per neuron.
        keeps_current: whether a spike leaves the current unchanged.
        surrogate: the derivative of ``H``, or its name.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Rotter & Diesmann (1999), *Exact digital simulation of time-invariant linear systems*; Shiu et al.
    (2024), *A Drosophila computational brain model reveals sensorimotor processing*, Nature 634.
    """

    tau = AtLeast(1.0)
    tau_synapse = AtLeast(1.0)
    rare = ("keeps_current",)

    def __init__(
        self,
        tau: Value = 4.0,
        tau_synapse: Value = 2.0,
        threshold: Value = 1.0,
        period: Value = 1.0,
        *,
        keeps_current: bool = False,
        surrogate: Surrogate | str = Step(),
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, 0.0, surrogate, detach_reset=False)
        self.tau = time_constant("tau", tau)
        self.tau_synapse = time_constant("tau_synapse", tau_synapse)
        if tau_synapse is tau or (isinstance(tau, int | float) and tau_synapse == tau):
            raise ValueError(f"tau_synapse must differ from tau, got {tau_synapse!r} for both")
        self.period, self.keeps_current = between("period", period, 1, math.inf), keeps_current
        self._learn(learn)

    def forward(  # type: ignore[override]
        self,
        input_: Tensor,
        i_previous: Tensor,
        v_previous: Tensor,
        r_previous: Tensor,
        s_previous: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        is_held = r_previous > 0
        r = torch.where(is_held, r_previous - 1, 0)
        i = i_previous if self.keeps_current else torch.where(is_held, 0, i_previous)
        leak, difference = _exp(-1 / self.tau), 1 / self.tau_synapse - 1 / self.tau
        from_current = leak * (1 - _exp(-difference)) / (difference * self.tau)
        v = torch.where(is_held, 0, v_previous) * leak + i * from_current
        if self.keeps_current:
            v = torch.where(r > 0, 0, v)
        s = self.surrogate(v - self.threshold)
        return i * _exp(-1 / self.tau_synapse) + input_, v, torch.where(s > 0, self.period, r), s


def _exp(x: Value) -> Value:
    """The exponential function."""
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)
