"""Neurons in whole numbers: potentials in units of the weights below, leaks that round."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from hibana.cells import (
    ALIFCell,
    Cell,
    CubaLIFCell,
    IFCell,
    LICell,
    LIFCell,
    PLIFCell,
    RefractoryLIFCell,
)
from hibana.loop.graph.ops import Unsupported
from hibana.surrogate import Heaviside

__all__ = ["Leak", "whole_cell"]

Scale = float | Tensor
FRACTION = 15
"""Bits after the point of a leak that is no shift."""


class Leak:
    """What is left of a potential after a step, rounded to the nearest whole number.

        leak(v) = v                                  tau infinite
                  v - floor(v / 2^k + 1/2)           tau = 2^k
                  floor(v m / 2^15 + 1/2)            else, m = round(2^15 (1 - 1/tau))

    A rounded leak of a small number does not go on to zero: it rests where half a unit is left to lose.
    """

    def __init__(self, tau: float) -> None:
        self.shift: int | None = None
        self.factor: float | None = None
        if math.isinf(tau):
            return
        power = math.log2(tau)
        if power == int(power):
            self.shift = int(power)
        else:
            self.factor = round(2**FRACTION * (1 - 1 / tau)) / 2**FRACTION

    def __call__(self, v: Tensor) -> Tensor:
        if self.shift is not None:
            return v - torch.floor(v * 2.0**-self.shift + 0.5)
        return v if self.factor is None else torch.floor(v * self.factor + 0.5)

    def __repr__(self) -> str:
        if self.shift is not None:
            return f"v - (v >> {self.shift})"
        return "v" if self.factor is None else f"v * {round(self.factor * 2**FRACTION)} >> {FRACTION}"


class WholeCell(Cell):
    """A cell in whole numbers, with a threshold for each neuron or all."""

    def extra_repr(self) -> str:
        """The leaks, thresholds unless there is one a neuron, and the reset."""
        shown = {n: v for n, v in vars(self).items() if isinstance(v, Leak) or n in ("threshold", "reset")}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def __init__(self, threshold: Scale, reset: Any) -> None:
        super().__init__()
        self.threshold = threshold
        self.reset = reset

    def _rested(self, v: Tensor, spikes: Tensor) -> Tensor:
        if isinstance(self.reset, str):
            return v - spikes * self.threshold
        left = v * (1 - spikes)
        if not isinstance(self.reset, Tensor) and self.reset == 0:
            return left
        after: Tensor = left + spikes * self.reset
        return after


@final
class WholeLIFCell(WholeCell):
    """``v = leak(rested(v_previous)) + input_``, ``s = H(v - threshold)``."""

    def __init__(self, leak: Leak, threshold: Scale, reset: Any, initial: Scale = 0.0) -> None:
        super().__init__(threshold, reset)
        self.leak, self.initial = leak, initial

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        v = self.leak(self._rested(v_previous, s_previous)) + input_
        return v, Heaviside.apply(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        spikes = torch.zeros_like(input_)
        return spikes + self.initial, spikes

    def rests_at_zero(self) -> bool:
        return not isinstance(self.initial, Tensor) and self.initial == 0


@final
class WholeCubaLIFCell(WholeCell):
    """``i = leak_i(i_previous) + input_``, ``v = leak(rested(v_previous)) + i``, ``s = H(v - threshold)``."""

    def __init__(self, of_current: Leak, leak: Leak, threshold: Scale, reset: Any) -> None:
        super().__init__(threshold, reset)
        self.of_current, self.leak = of_current, leak

    def forward(  # type: ignore[override]
        self, input_: Tensor, i_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        i = self.of_current(i_previous) + input_
        v = self.leak(self._rested(v_previous, s_previous)) + i
        return i, v, Heaviside.apply(v - self.threshold)


@final
class WholeALIFCell(WholeCell):
    """``a = leak_a(a_previous) + strength s``, ``v`` as in a LIF, ``s = H(v - a - threshold)``."""

    def __init__(self, leak: Leak, of_threshold: Leak, strength: Scale, threshold: Scale, reset: Any) -> None:
        super().__init__(threshold, reset)
        self.leak, self.of_threshold, self.strength = leak, of_threshold, strength

    def forward(  # type: ignore[override]
        self, input_: Tensor, a_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = self.of_threshold(a_previous) + s_previous * self.strength
        v = self.leak(self._rested(v_previous, s_previous)) + input_
        return a, v, Heaviside.apply(v - (a + self.threshold))


@final
class WholeRefractoryLIFCell(WholeCell):
    """:class:`hibana.RefractoryLIFCell` in whole numbers."""

    def __init__(self, leak: Leak, period: float, threshold: Scale, reset: Any) -> None:
        super().__init__(threshold, reset)
        self.leak, self.period = leak, period

    def forward(  # type: ignore[override]
        self, input_: Tensor, r_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r = torch.where(s_previous > 0, self.period, torch.clamp(r_previous - 1, min=0))
        awake = (r == 0).to(input_.dtype)
        v = self.leak(self._rested(v_previous, s_previous)) + input_ * awake
        return r, v, Heaviside.apply(v - self.threshold) * awake


@final
class WholeLICell(Cell):
    """``v = leak(v_previous) + input_``: a readout."""

    def __init__(self, leak: Leak) -> None:
        super().__init__()
        self.leak = leak

    def forward(self, input_: Tensor, v_previous: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (self.leak(v_previous) + input_,)


def whole_cell(name: str, cell: Cell, scale: Scale) -> Cell:
    """`cell` in whole numbers, whose input comes in units of `scale`.

    A potential above a threshold is a whole number above that threshold rounded down, so that rounding it
    loses nothing; with a reset by subtraction it is rounded to the nearest.

    Raises:
        Unsupported: naming the layer, if nothing is known of such a cell.
    """
    make = _MADE.get(type(cell))
    if make is None:
        known = ", ".join(kind.__name__.removesuffix("Cell") for kind in _MADE)
        raise Unsupported(f"layer {name!r}: {type(cell).__name__} has no form in whole numbers; {known} do")
    try:
        return make(cell, scale)
    except ValueError as error:
        raise Unsupported(f"layer {name!r}: {error}") from error


def _one(name: str, value: Any) -> float:
    """A hyper-parameter that has to be one number for all neurons."""
    tensor = _doubles(value)
    if tensor.numel() > 1 and not bool((tensor == tensor.flatten()[0]).all()):
        raise ValueError(f"{name} differs from neuron to neuron, which a leak in whole numbers can't")
    return float(tensor.flatten()[0])


def _doubles(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()


def _in(scale: Scale, value: Any, rounded: Callable[[Tensor], Tensor] = torch.round) -> Scale:
    """`value` in units of `scale`."""
    whole = rounded(_doubles(value) / _doubles(scale))
    return float(whole) if whole.ndim == 0 else whole


def _threshold(cell: Any, scale: Scale) -> Scale:
    return _in(scale, cell.threshold, torch.round if isinstance(cell.reset, str) else torch.floor)


def _reset(cell: Any, scale: Scale) -> Any:
    return cell.reset if isinstance(cell.reset, str) or cell.reset == 0 else _in(scale, cell.reset)


def _if(cell: Any, scale: Scale) -> Cell:
    initial = _in(scale, cell.initial)
    return WholeLIFCell(Leak(math.inf), _threshold(cell, scale), _reset(cell, scale), initial)


def _lif(cell: Any, scale: Scale) -> Cell:
    return WholeLIFCell(Leak(_one("tau", cell.tau)), _threshold(cell, scale), _reset(cell, scale))


def _plif(cell: Any, scale: Scale) -> Cell:
    tau = _one("tau", cell.tau)
    return _lif(LIFCell(tau, cell.threshold, reset=cell.reset), _doubles(scale) / tau)


def _cuba(cell: Any, scale: Scale) -> Cell:
    leaks = Leak(_one("tau_synapse", cell.tau_synapse)), Leak(_one("tau", cell.tau))
    return WholeCubaLIFCell(*leaks, _threshold(cell, scale), _reset(cell, scale))


def _alif(cell: Any, scale: Scale) -> Cell:
    leaks = Leak(_one("tau", cell.tau)), Leak(_one("tau_adaptation", cell.tau_adaptation))
    strength = _in(scale, cell.strength)
    return WholeALIFCell(*leaks, strength, _threshold(cell, scale), _reset(cell, scale))


def _refractory(cell: Any, scale: Scale) -> Cell:
    leak = Leak(_one("tau", cell.tau))
    return WholeRefractoryLIFCell(leak, cell.period, _threshold(cell, scale), _reset(cell, scale))


def _li(cell: Any, scale: Scale) -> Cell:
    return WholeLICell(Leak(_one("tau", cell.tau)))


_MADE: dict[type[Cell], Callable[[Any, Scale], Cell]] = {
    IFCell: _if,
    LIFCell: _lif,
    PLIFCell: _plif,
    CubaLIFCell: _cuba,
    ALIFCell: _alif,
    RefractoryLIFCell: _refractory,
    LICell: _li,
}
