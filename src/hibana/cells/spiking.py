"""What neurons that spike have in common: a threshold, a reset, a surrogate."""

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
        return after_reset(v_previous, s_previous, self.threshold, self.reset, self.detach_reset)


def after_reset(v: Tensor, spikes: Tensor, threshold: Value, reset: Reset, detach: bool) -> Tensor:
    """The potential at the start of a step: reset where the neuron spiked in the step before."""
    if detach:
        spikes = spikes.detach()
    if isinstance(reset, str):
        return v - spikes * threshold
    if not isinstance(reset, Tensor) and reset == 0:
        return v * (1 - spikes)
    return v * (1 - spikes) + spikes * reset


def bounded_below(v: Tensor, bound: Value | None) -> Tensor:
    """The potential, which does not fall below `bound`, where there is one."""
    if bound is None:
        return v
    if isinstance(bound, Tensor):
        return torch.maximum(v, bound)
    return torch.where(v < bound, bound, v)  # at its bound, clamp's derivative is 1 or 0, by torch's release


def decay(tau: Value) -> Value:
    """What is left of a potential after one step of a leak: ``1 - 1/tau``."""
    return 1 - 1 / tau
