"""Neurons that make their own upstroke, in whole numbers: a curve that bends upwards as the largest of lines.

A step of EIF, QIF and Izhikevich takes a potential along a curve, exponential or quadratic. Where such a
curve bends upwards alone, it is the largest of its lines to within what lies between two of them, and lines
are products with numbers of few bits that are rounded: the same everywhere, without a table.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from hibana.cells.spiking import bounded_below
from hibana.network.quantized.cells import HELD, IntCell, Scale, Spikes
from hibana.network.quantized.leak import Leak
from hibana.network.straight import rounded_down

__all__ = ["Lines", "IntIzhikevichCell", "IntUpstrokeCell"]

Lines = Sequence[tuple[Scale, Scale]]
"""Slopes and offsets."""


class _Curved(IntCell):
    """A cell whose potential follows the largest of lines ``floor(slope v + 1/2) + offset``."""

    def __init__(self, spikes: Spikes, lines: Lines, low: Scale | None, top: Scale) -> None:
        super().__init__(spikes)
        self.low, self.top, self.count = low, top, len(lines)
        for k, (slope, offset) in enumerate(lines):
            setattr(self, f"slope{k}", slope)
            setattr(self, f"offset{k}", offset)

    def _followed(self, v: Tensor) -> Tensor:
        """Where the curve takes `v`."""
        found = v
        for k in range(self.count):
            line: Tensor = rounded_down(v * getattr(self, f"slope{k}") + 0.5) + getattr(self, f"offset{k}")
            found = line if k == 0 else torch.maximum(found, line)
        return found

    def _held(self, v: Tensor) -> Tensor:
        """`v` within the curve, of which both ends are known to be reached only by what is put in."""
        return _most(bounded_below(v, self.low), self.top)


def _most(v: Tensor, bound: Scale) -> Tensor:
    return torch.minimum(v, bound) if isinstance(bound, Tensor) else torch.clamp(v, max=bound)


@final
class IntUpstrokeCell(_Curved):
    """``v = curve(rested(v_previous)) + input_``, ``s = H(v - threshold)``."""

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        v = self._followed(self._held(self._rested(v_previous, s_previous))) + input_
        return v, self._spikes(v - self.threshold)


@final
class IntIzhikevichCell(_Curved):
    """:class:`hibana.IzhikevichCell` in whole numbers: ``u`` in units of the input, ``v`` in those times dt.

    `u` is held within ``2^22``.
    """

    def __init__(
        self,
        spikes: Spikes,
        lines: Lines,
        ends: tuple[Scale, Scale],
        leak: Leak,
        pull: Scale,
        jump: Scale,
        begun: tuple[Scale, Scale],
    ) -> None:
        super().__init__(spikes, lines, *ends)
        self.leak, self.pull, self.jump = leak, pull, jump
        self.u_begun, self.v_begun = begun

    def forward(  # type: ignore[override]
        self, input_: Tensor, u_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        v0 = self._held(self._rested(v_previous, s_previous))
        spiked = s_previous.detach() if self.detach_reset else s_previous
        u0 = u_previous + spiked * self.jump
        v = self._followed(v0) + (input_ - u0)
        u = torch.clamp(self.leak(u0) + rounded_down(v0 * self.pull + 0.5), -HELD, HELD)
        return u, v, self._spikes(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        at_rest = torch.zeros_like(input_)
        return at_rest + self.u_begun, at_rest + self.v_begun, at_rest

    def rests_at_zero(self) -> bool:
        return False
