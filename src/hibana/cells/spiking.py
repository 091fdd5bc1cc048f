"""The base class of spiking neurons, with a threshold, a reset and a surrogate; and leaks of a potential."""

import torch
from torch import Tensor

from hibana.cells.base import BuiltIn
from hibana.cells.ranges import AtLeast
from hibana.cells.surrogate import Surrogate
from hibana.cells.values import Reset, Value, checked_reset, checked_surrogate, positive


class Spiking(BuiltIn):
    """A cell with a threshold, a reset and a surrogate."""

    threshold = AtLeast(0.0)

    def __init__(
        self, threshold: Value, reset: Reset, surrogate: Surrogate | str, detach_reset: bool
    ) -> None:
        super().__init__()
        self.threshold = positive("threshold", threshold)
        self.reset = checked_reset(reset)
        self.surrogate = checked_surrogate(surrogate)
        self.detach_reset = detach_reset

    def _rested(self, v_previous: Tensor, s_previous: Tensor) -> Tensor:
        """``rested(v_previous)`` in the equations of cells: reset where the previous step's spikes are 1."""
        spikes, reset = s_previous.detach() if self.detach_reset else s_previous, self.reset
        if isinstance(reset, str):
            threshold: Value = self.threshold
            return v_previous - spikes * threshold
        if not isinstance(reset, Tensor) and reset == 0:
            return v_previous * (1 - spikes)
        return v_previous * (1 - spikes) + spikes * reset


def bounded_below(v: Tensor, bound: Value | None) -> Tensor:
    """The potential `v`, at least `bound`; `v` itself if `bound` is None."""
    if bound is None:
        return v
    if isinstance(bound, Tensor):
        return torch.maximum(v, bound)
    return torch.where(v < bound, bound, v)  # clamp's derivative at the bound depends on torch's version


def decay(tau: Value) -> Value:
    """The factor of a potential in one step of a leak: ``1 - 1/tau``."""
    return 1 - 1 / tau
