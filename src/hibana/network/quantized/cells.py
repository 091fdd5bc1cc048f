"""Neurons in whole numbers: potentials in units of the weights below, leaks that round.

While a network is trained, the same cells spike with the surrogate that they will have been trained with, on
potentials in the units that the network is written in.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.spiking import after_reset, bounded_below
from hibana.cells.surrogate import Heaviside, Surrogate
from hibana.network.quantized.leak import Leak
from hibana.network.straight import rounded_down

__all__ = [
    "Scale",
    "Spikes",
    "IntALIFCell",
    "IntAdLIFCell",
    "IntCubaLIFCell",
    "IntLICell",
    "IntLIFCell",
    "IntRefractoryLIFCell",
]

Scale = float | Tensor
HELD = 2.0**22
"""Where states that feed on each other stop: what float32 holds exactly, and no network comes to."""


@dataclass(frozen=True)
class Spikes:
    """When a neuron spikes, and what becomes of it."""

    threshold: Scale
    reset: Any
    """A potential in whole numbers, or ``"subtract"``."""
    detach_reset: bool = False
    unit: Scale | None = None
    """What a whole number stands for, while a network is trained;"""
    surrogate: Surrogate | None = None
    """and the derivative of its spikes."""


class IntCell(Cell):
    """A cell in whole numbers, with a threshold for each neuron or all."""

    def __init__(self, spikes: Spikes) -> None:
        super().__init__()
        self.threshold, self.reset, self.detach_reset = spikes.threshold, spikes.reset, spikes.detach_reset
        self.unit, self.surrogate = spikes.unit, spikes.surrogate

    def extra_repr(self) -> str:
        """The thresholds, unless there is one a neuron, and the reset."""
        return ", ".join(f"{n}={v}" for n, v in vars(self).items() if n in ("threshold", "reset"))

    def _rested(self, v: Tensor, spikes: Tensor) -> Tensor:
        return after_reset(v, spikes, self.threshold, self.reset, self.detach_reset)

    def _spikes(self, above: Tensor) -> Tensor:
        """Where a potential is above its threshold by more than 0."""
        spikes: Tensor
        if self.surrogate is None or self.unit is None:
            spikes = Heaviside.apply(above)
        else:
            spikes = self.surrogate(above * self.unit)
        return spikes


@final
class IntLIFCell(IntCell):
    """``v = leak(rested(v_previous)) + input_``, ``s = H(v - threshold)``, with the options of LIF.

    What it leaks to is `rest`.
    """

    def __init__(
        self,
        spikes: Spikes,
        leak: Leak,
        initial: Scale = 0.0,
        rest: Scale = 0.0,
        leak_first: bool = False,
        lower_bound: Scale | None = None,
    ) -> None:
        super().__init__(spikes)
        self.leak, self.initial, self.rest = leak, initial, rest
        self.leak_first, self.lower_bound = leak_first, lower_bound

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.leak_first:
            v = self._rested(self._leaked(v_previous) + input_, s_previous)
        else:
            v = self._leaked(bounded_below(self._rested(v_previous, s_previous), self.lower_bound)) + input_
        return v, self._spikes(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        spikes = torch.zeros_like(input_)
        return spikes + self.initial, spikes

    def rests_at_zero(self) -> bool:
        return not isinstance(self.initial, Tensor) and self.initial == 0

    def _leaked(self, v: Tensor) -> Tensor:
        left: Tensor
        if not isinstance(self.rest, Tensor) and self.rest == 0:
            left = self.leak(v)
        else:
            left = self.leak(v - self.rest) + self.rest
        return left


@final
class IntCubaLIFCell(IntCell):
    """``i = leak_i(i_previous) + input_``, ``v = leak(rested(v_previous)) + i``, ``s = H(v - threshold)``."""

    def __init__(self, spikes: Spikes, of_current: Leak, leak: Leak) -> None:
        super().__init__(spikes)
        self.of_current, self.leak = of_current, leak

    def forward(  # type: ignore[override]
        self, input_: Tensor, i_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        i = self.of_current(i_previous) + input_
        v = self.leak(self._rested(v_previous, s_previous)) + i
        return i, v, self._spikes(v - self.threshold)


@final
class IntALIFCell(IntCell):
    """``a = leak_a(a_previous) + strength s``, ``v`` as in a LIF, ``s = H(v - a - threshold)``."""

    def __init__(self, spikes: Spikes, leak: Leak, of_threshold: Leak, strength: Scale) -> None:
        super().__init__(spikes)
        self.leak, self.of_threshold, self.strength = leak, of_threshold, strength

    def forward(  # type: ignore[override]
        self, input_: Tensor, a_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = self.of_threshold(a_previous) + s_previous * self.strength
        v = self.leak(self._rested(v_previous, s_previous)) + input_
        return a, v, self._spikes(v - (a + self.threshold))


@final
class IntAdLIFCell(IntCell):
    """:class:`hibana.AdLIFCell` in whole numbers: ``w`` in units of the input, ``v`` in those over tau.

        w = leak_w(w_previous) + floor(coupling v_previous + 1/2) + jump s_previous
        v = leak(rested(v_previous)) + input_ - w

    Both are held within ``2^22``, since they feed on each other.
    """

    def __init__(self, spikes: Spikes, leak: Leak, of_current: Leak, coupling: Scale, jump: Scale) -> None:
        super().__init__(spikes)
        self.leak, self.of_current, self.coupling, self.jump = leak, of_current, coupling, jump

    def forward(  # type: ignore[override]
        self, input_: Tensor, w_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        pulled = rounded_down(v_previous * self.coupling + 0.5) + s_previous * self.jump
        w = torch.clamp(self.of_current(w_previous) + pulled, -HELD, HELD)
        v = self.leak(self._rested(v_previous, s_previous)) + (input_ - w)
        v = torch.clamp(v, -HELD, HELD)
        return w, v, self._spikes(v - self.threshold)


@final
class IntRefractoryLIFCell(IntCell):
    """:class:`hibana.RefractoryLIFCell` in whole numbers."""

    def __init__(self, spikes: Spikes, leak: Leak, period: float) -> None:
        super().__init__(spikes)
        self.leak, self.period = leak, period

    def forward(  # type: ignore[override]
        self, input_: Tensor, r_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r = torch.where(s_previous > 0, self.period, torch.clamp(r_previous - 1, min=0))
        awake = (r == 0).to(input_.dtype)
        v = self.leak(self._rested(v_previous, s_previous)) + input_ * awake
        return r, v, self._spikes(v - self.threshold) * awake


@final
class IntLICell(Cell):
    """``v = leak(v_previous) + input_``: a readout."""

    def __init__(self, leak: Leak) -> None:
        super().__init__()
        self.leak = leak

    def forward(self, input_: Tensor, v_previous: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (self.leak(v_previous) + input_,)
