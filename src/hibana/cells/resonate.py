"""Neurons whose potential oscillates: complex states, stored as two real states."""

import math
from typing import Any, Self, final

import torch
from torch import Tensor

from hibana.cells.ranges import AtLeast, Between
from hibana.cells.spiking import Spiking, decay
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, between, log_uniform, time_constant

__all__ = ["ResonateAndFireCell", "SiLIFCell"]


@final
class ResonateAndFireCell(Spiking):
    """Balanced resonate-and-fire: it responds to one frequency, and a spike does not reset its phase.

        q = (1 - 1/tau_refractory) * q_previous + s_previous
        r = sqrt(1 - omega^2) - damping - refractory * q
        v = r * v_previous - omega * w_previous + input_
        w = omega * v_previous + r * w_previous
        s = H(v - (threshold + q))

    ``v + iw`` is the complex state. Without damping its magnitude is constant for every `omega`. A spike does
    not reset the state: for some steps, it increases the damping and raises the threshold. The paper's values
    are multiplied by its step of 0.01 here: ``omega=0.1`` is 10 there.

    Args:
        omega: angular frequency, in radians per step, in [0, 0.99].
        damping: fraction of the state that is lost per step, in [0, 1].
        refractory: additional fraction that is lost per unit of `q`, in [0, 1].
        tau_refractory: time constant of `q`, in time steps.
        threshold: spikes where ``v > threshold + q``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient from a spike to `q`.
        learn: names of values to make parameters of, such as ``"omega"``; a tensor is one per neuron.

    Source: Higuchi, Kairat, Bohté & Otte (2024), *Balanced resonate-and-fire neurons*; Izhikevich (2001),
    *Resonate-and-fire neurons*.

    >>> cell = ResonateAndFireCell.spread(64)  # frequency and damping learned, for each of 64 neurons
    >>> [(name, len(value)) for name, value in cell.named_parameters()]
    [('logit_omega', 64), ('logit_damping', 64)]
    """

    omega = Between(0.0, 0.99)
    damping = Between(0.0, 1.0)
    refractory = Between(0.0, 1.0)
    tau_refractory = AtLeast(1.0)

    def __init__(
        self,
        omega: Value = 0.1,
        damping: Value = 0.01,
        refractory: Value = 0.01,
        tau_refractory: Value = 10.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, 0.0, surrogate, detach_reset)
        self.omega = between("omega", omega, 0.0, 0.99)
        self.damping = between("damping", damping, 0.0, 1.0)
        self.refractory = between("refractory", refractory, 0.0, 1.0)
        self.tau_refractory = time_constant("tau_refractory", tau_refractory)
        self._learn(learn)

    @classmethod
    def spread(cls, *shape: int, least: float = 0.05, most: float = 0.5, **options: Any) -> Self:
        """A cell with different random values for each neuron, which it learns.

        `omega` is spread evenly in its logarithm over [least, most], `damping` over [0.001, 0.01], which is
        the paper's range.

        Args:
            shape: shape of the layer's neurons, such as 64.
            least: the lowest frequency, in radians per step.
            most: the highest frequency, in radians per step, below 0.99.
            options: further arguments of the cell.
        """
        values = {"omega": log_uniform(least, most, *shape), "damping": log_uniform(1e-3, 1e-2, *shape)}
        return cls(**{**values, "learn": (*values,), **options})

    def forward(  # type: ignore[override]
        self, input_: Tensor, q_previous: Tensor, w_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        spiked = s_previous.detach() if self.detach_reset else s_previous
        omega = self.omega
        q = q_previous * decay(self.tau_refractory) + spiked
        r = (1 - omega * omega) ** 0.5 - self.damping - q * self.refractory
        v = v_previous * r - w_previous * omega + input_
        w = v_previous * omega + w_previous * r
        return q, w, v, self.surrogate(v - (q + self.threshold))


@final
class SiLIFCell(Spiking):
    """A spiking state-space neuron: one complex diagonal state that decays and turns (C-SiLIF).

        v + iw = exp(-1/tau + i omega) * (rested(v_previous) + i w_previous) + input_
        s = H(v - threshold)

    `v` is the sum of a pair of conjugate states of a diagonal state-space model, twice their real part. The
    paper also learns a step size, which is part of `tau` and `omega` here.

    Args:
        tau: time constant of the state, in time steps.
        omega: angular frequency, in radians per step, in [0, pi]; 0 gives a leaky integrate-and-fire neuron.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``, as in the paper.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Fabre, Dudchenko, Bouhadjar & Neftci (2025), *SiLIF: structured state space model dynamics and
    parametrization for spiking neural networks* (arXiv 2506.06374); Gu, Gupta, Goel & Ré (2022), *On the
    parameterization and initialization of diagonal state space models*.

    >>> cell = SiLIFCell.spread(64)  # time constant and frequency learned, for each of 64 neurons
    >>> [(name, len(value)) for name, value in cell.named_parameters()]
    [('log_tau', 64), ('logit_omega', 64)]
    """

    tau = AtLeast(1.0)
    omega = Between(0.0, math.pi)

    def __init__(
        self,
        tau: Value = 20.0,
        omega: Value = 0.1,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = "subtract",
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.omega = between("omega", omega, 0.0, math.pi)
        self._learn(learn)

    @classmethod
    def spread(cls, *shape: int, least: float = 5.0, most: float = 100.0, **options: Any) -> Self:
        """A cell with different random values for each neuron, which it learns.

        `tau` is spread evenly in its logarithm over [least, most], `omega` in the same way over
        ``[1/most, 1/least]``, independently, so that a slow neuron may oscillate slowly or fast.

        Args:
            shape: shape of the layer's neurons, such as 64.
            least: the shortest time constant, in time steps.
            most: the longest time constant, in time steps.
            options: further arguments of the cell.
        """
        values = {"tau": log_uniform(least, most, *shape), "omega": log_uniform(1 / most, 1 / least, *shape)}
        return cls(**{**values, "learn": (*values,), **options})

    def forward(  # type: ignore[override]
        self, input_: Tensor, w_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        rested = self._rested(v_previous, s_previous)
        magnitude = _apply("exp", -1 / self.tau)
        real, imaginary = magnitude * _apply("cos", self.omega), magnitude * _apply("sin", self.omega)
        v = rested * real - w_previous * imaginary + input_
        w = rested * imaginary + w_previous * real
        return w, v, self.surrogate(v - self.threshold)


def _apply(function: str, value: Value) -> Value:
    """``exp``, ``cos`` or ``sin`` of a number or a tensor."""
    result: Value = getattr(torch if isinstance(value, Tensor) else math, function)(value)
    return result
