"""Leaky integrate-and-fire whose threshold moves with its spikes."""

from typing import final

from torch import Tensor

from hibana.cells.base import AtLeast
from hibana.cells.spiking import Spiking, decay
from hibana.cells.values import Reset, Value, time_constant
from hibana.surrogate import Step, Surrogate

__all__ = ["ALIFCell"]


@final
class ALIFCell(Spiking):
    """Leaky integrate-and-fire whose threshold rises with each spike and decays back.

        a = (1 - 1/tau_adaptation) * a_previous + s_previous
        v = (1 - 1/tau) * rested(v_previous) + input_
        s = H(v - (threshold + strength * a))

    Args:
        tau: membrane time constant, in time steps.
        tau_adaptation: time constant of the adaptation `a`, in time steps.
        strength: how much one spike raises the threshold, in units of `v`.
        threshold: spikes where ``v > threshold + strength * a``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons*.
    """

    tau = AtLeast(1.0)
    tau_adaptation = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        tau_adaptation: Value = 100.0,
        strength: Value = 0.1,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.tau_adaptation = time_constant("tau_adaptation", tau_adaptation)
        self.strength = strength

    def forward(  # type: ignore[override]
        self, input_: Tensor, a_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = a_previous * decay(self.tau_adaptation) + s_previous
        v = self._rested(v_previous, s_previous) * decay(self.tau) + input_
        return a, v, self.surrogate(v - (a * self.strength + self.threshold))
