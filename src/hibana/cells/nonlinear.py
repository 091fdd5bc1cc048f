"""Integrate-and-fire neurons with a nonlinear upstroke of the spike: exponential and quadratic."""

from typing import final

import torch
from torch import Tensor

from hibana.cells.ranges import AtLeast
from hibana.cells.spiking import Spiking
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, positive, time_constant

__all__ = ["EIFCell", "QIFCell"]


@final
class EIFCell(Spiking):
    """Exponential integrate-and-fire.

        v = u + (sharpness * exp((u - rheobase) / sharpness) - u) / tau + input_,   u = rested(v_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant, in time steps.
        sharpness: width of the spike's upstroke, in units of `v`.
        rheobase: potential at which the upstroke begins, in units of `v`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Fourcaud-Trocmé, Hansel, van Vreeswijk & Brunel (2003), *How spike generation mechanisms
    determine the neuronal response to fluctuating inputs*.
    """

    tau = AtLeast(1.0)
    sharpness = AtLeast(0.0)

    def __init__(
        self,
        tau: Value = 5.0,
        sharpness: Value = 0.2,
        rheobase: Value = 0.8,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.sharpness = positive("sharpness", sharpness)
        self.rheobase = rheobase
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        u = self._rested(v_previous, s_previous)
        upstroke = torch.exp((u - self.rheobase) / self.sharpness) * self.sharpness
        v = u + (upstroke - u) / self.tau + input_
        return v, self.surrogate(v - self.threshold)


@final
class QIFCell(Spiking):
    """Quadratic integrate-and-fire.

        v = u + curvature * u * (u - critical) / tau + input_,   u = rested(v_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant, in time steps.
        curvature: strength of the quadratic term, per unit of `v`.
        critical: potential above which `v` grows without input, in units of `v`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Latham, Richmond, Nelson & Nirenberg (2000), *Intrinsic dynamics in neuronal networks*.
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 5.0,
        curvature: Value = 1.0,
        critical: Value = 0.8,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.curvature = curvature
        self.critical = critical
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        u = self._rested(v_previous, s_previous)
        v = u + u * (u - self.critical) * self.curvature / self.tau + input_
        return v, self.surrogate(v - self.threshold)
