"""Izhikevich's simple model, in millivolts and milliseconds."""

from typing import final

import torch
from torch import Tensor

from hibana.cells.ranges import AtLeast
from hibana.cells.spiking import Spiking
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Value, positive

__all__ = ["IzhikevichCell"]


@final
class IzhikevichCell(Spiking):
    """Izhikevich's simple model, with potentials in millivolts and steps of `dt` milliseconds.

        v0, u0 = (c, u_previous + d)  where s_previous, else  (v_previous, u_previous)
        v = v0 + dt * (0.04 * v0^2 + 5 * v0 + 140 - u0 + input_)
        u = u0 + dt * a * (b * v0 - u0)
        s = H(v - threshold)

    The state is ``(u, v, s)``; at rest ``v = -65``, ``u = -65 * b``.

    Args:
        a: rate of the recovery `u`, per ms.
        b: sensitivity of the recovery to `v`.
        c: potential after a spike, mV.
        d: amount that a spike adds to the recovery.
        dt: time step, ms.
        threshold: peak of the spike, mV.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        learn: names of values to make parameters of, such as ``"threshold"``; a tensor is one per neuron.

    Source: Izhikevich (2003), *Simple model of spiking neurons* (regular spiking by default).
    """

    dt = AtLeast(0.0)

    def __init__(
        self,
        a: Value = 0.02,
        b: Value = 0.2,
        c: Value = -65.0,
        d: Value = 8.0,
        dt: float = 1.0,
        threshold: Value = 30.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, 0.0, surrogate, detach_reset)
        self.a, self.b, self.c, self.d = a, b, c, d
        self.dt = positive("dt", dt)
        self._learn(learn)

    def forward(  # type: ignore[override]
        self, input_: Tensor, u_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        spiked = s_previous.detach() if self.detach_reset else s_previous
        v0 = v_previous * (1 - spiked) + spiked * self.c
        u0 = u_previous + spiked * self.d
        v = v0 + (v0 * v0 * 0.04 + v0 * 5 + 140 - u0 + input_) * self.dt
        u = u0 + (v0 * self.b - u0) * self.a * self.dt
        return u, v, self.surrogate(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The resting state: ``u = -65 * b``, ``v = -65`` and no spikes."""
        v = torch.full_like(input_, -65.0)
        return v * self.b, v, torch.zeros_like(input_)
