"""What each cell of the package is in whole numbers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hibana import cells
from hibana.cells import Cell
from hibana.compiler.graph.ops import Unsupported
from hibana.network.quantized.cells import (
    IntAdLIFCell,
    IntALIFCell,
    IntCubaLIFCell,
    IntLICell,
    IntLIFCell,
    IntRefractoryLIFCell,
    Scale,
    Spikes,
)
from hibana.network.quantized.leak import FRACTION, Leak
from hibana.network.straight import doubles, straight_through

__all__ = ["whole_cell"]


def whole_cell(name: str, cell: Cell, scale: Scale, training: bool = False) -> Cell:
    """`cell` in whole numbers, whose input comes in units of `scale`.

    A potential above a threshold is a whole number above that threshold rounded down, so that rounding it
    loses nothing; with a reset by subtraction it is rounded to the nearest.

    Args:
        name: the layer's.
        cell: in the units that its network is written in.
        scale: a number, or one for each channel.
        training: it spikes with the surrogate of `cell`.

    Raises:
        Unsupported: naming the layer, if nothing is known of such a cell.
    """
    make = _MADE.get(type(cell))
    if make is None:
        raise Unsupported(
            f"layer {name!r}: {type(cell).__name__} has no form in whole numbers, which most of "
            "hibana's own cells have; convert the network in floats, without quantising it"
        )
    try:
        return make(cell, _Units(scale, training))
    except ValueError as error:
        raise Unsupported(f"layer {name!r}: {error}") from error


class _Units:
    """The values of a cell, in units of what comes in; what is learned of them with its gradient."""

    def __init__(self, scale: Scale, training: bool) -> None:
        self.scale, self.training = doubles(scale), training

    def by(self, factor: Tensor) -> "_Units":
        """Of numbers `factor` times as fine."""
        return _Units(self.scale / factor, self.training)

    def whole(self, value: Any, rounded: Callable[[Tensor], Tensor] = torch.round) -> Scale:
        """`value` as a whole number, or one for each channel."""
        real = doubles(value) / self.scale.to(doubles(value).device)
        return _given(straight_through(real, rounded(real.detach())))

    def spikes(self, cell: Any, reset: Any = None) -> Spikes:
        """When `cell` spikes, and that it goes on from its own reset, or from `reset`."""
        reset = cell.reset if reset is None else reset
        subtracts = isinstance(reset, str)
        threshold = self.whole(cell.threshold, torch.round if subtracts else torch.floor)
        if not subtracts:
            reset = 0.0 if not isinstance(reset, Tensor) and reset == 0 else self.whole(reset)
        if not self.training:
            return Spikes(threshold, reset)
        return Spikes(threshold, reset, cell.detach_reset, _given(self.scale), cell.surrogate)


def _given(values: Tensor) -> Scale:
    """A float where there is one number, and nothing to learn."""
    return values if values.numel() > 1 or values.requires_grad else float(values)


def _one(name: str, value: Any) -> Tensor:
    """A hyper-parameter that has to be one number for all neurons."""
    tensor = doubles(value).flatten()
    if not bool((tensor == tensor[0]).all()):
        raise ValueError(f"{name} differs from neuron to neuron, which a factor in whole numbers can't")
    return tensor[0]


def _number(value: Tensor) -> float:
    return float(value.detach())


def _factor(value: Tensor) -> Scale:
    """`value` rounded to so many bits after the point, to multiply with."""
    return _given(straight_through(value, (value.detach() * 2**FRACTION).round() / 2**FRACTION))


def _if(cell: Any, units: _Units) -> Cell:
    return IntLIFCell(units.spikes(cell), Leak(math.inf), units.whole(cell.initial))


def _lif(cell: Any, units: _Units) -> Cell:
    if cell.most_spikes > 1:
        raise ValueError(f"most_spikes={cell.most_spikes} gives counts of spikes, which nothing here adds")
    tau = _one("tau", cell.tau)
    if cell.decay_input:
        units = units.by(tau)
    rest = units.whole(cell.rest)
    bound = None if cell.lower_bound is None else units.whole(cell.lower_bound)
    return IntLIFCell(units.spikes(cell), Leak(tau), rest, rest, cell.leak_first, bound)


def _plif(cell: Any, units: _Units) -> Cell:
    tau = _one("tau", cell.tau)
    return IntLIFCell(units.by(tau).spikes(cell), Leak(tau))


def _cuba(cell: Any, units: _Units) -> Cell:
    leaks = Leak(_one("tau_synapse", cell.tau_synapse)), Leak(_one("tau", cell.tau))
    return IntCubaLIFCell(units.spikes(cell), *leaks)


def _alif(cell: Any, units: _Units) -> Cell:
    leaks = Leak(_one("tau", cell.tau)), Leak(_one("tau_adaptation", cell.tau_adaptation))
    return IntALIFCell(units.spikes(cell), *leaks, units.whole(cell.strength))


def _adlif(cell: Any, units: _Units) -> Cell:
    tau = _one("tau", cell.tau)
    leaks = Leak(tau), Leak(_one("tau_adaptation", cell.tau_adaptation))
    coupling = _factor(_one("coupling", cell.coupling) / tau)
    return IntAdLIFCell(units.by(tau).spikes(cell), *leaks, coupling, units.whole(cell.jump))


def _refractory(cell: Any, units: _Units) -> Cell:
    return IntRefractoryLIFCell(units.spikes(cell), Leak(_one("tau", cell.tau)), cell.period)


def _li(cell: Any, units: _Units) -> Cell:
    return IntLICell(Leak(_one("tau", cell.tau)))


_MADE: dict[type[Cell], Callable[[Any, _Units], Cell]] = {
    cells.IFCell: _if,
    cells.LIFCell: _lif,
    cells.PLIFCell: _plif,
    cells.CubaLIFCell: _cuba,
    cells.ALIFCell: _alif,
    cells.AdLIFCell: _adlif,
    cells.RefractoryLIFCell: _refractory,
    cells.LICell: _li,
}
