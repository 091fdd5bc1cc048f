"""The pair rule in plain PyTorch: the specification of the kernel, and its replacement if it can't run."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.cells.spiking import decay

__all__ = ["Pairs", "check_rate", "check_time_constant"]


@dataclass(frozen=True)
class Pairs:
    """The parameters by which pairs of spikes change a weight: arguments of :class:`hibana.learn.STDP`.

    Raises:
        TypeError: if `bounds` is not None or two numbers.
        ValueError: if an argument is outside its range.
    """

    tau_pre: float
    tau_post: float
    a_plus: float
    a_minus: float
    bounds: tuple[float, float] | None
    soft: bool
    nearest: bool

    def __post_init__(self) -> None:
        check_time_constant("tau_pre", self.tau_pre)
        check_time_constant("tau_post", self.tau_post)
        check_rate("a_plus", self.a_plus)
        check_rate("a_minus", self.a_minus)
        bounds = self.bounds
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"bounds must be two numbers (lower, upper), or None, got {bounds!r}")
            if not (all(map(_is_number, bounds)) and bounds[0] < bounds[1]):
                raise ValueError(f"bounds must be two numbers, the lower first, got {bounds!r}")
        if self.soft and (bounds is None or not all(map(math.isfinite, bounds))):
            raise ValueError(f"bounds must be two finite numbers where soft is True, got {bounds!r}")

    def next_trace(self, trace: Tensor, spikes: Tensor, tau: float) -> Tensor:
        """The trace after a step with `spikes`."""
        decayed = trace * decay(tau)
        return torch.maximum(decayed, spikes) if self.nearest else decayed + spikes

    def traces(self, spikes: Tensor, tau: float) -> Tensor:
        """The trace after each step, for `spikes` and a result of shape ``[T, batch, neurons]``."""
        traces = [spikes[0]]
        for step in spikes[1:]:
            traces.append(self.next_trace(traces[-1], step, tau))
        return torch.stack(traces)

    def weight_change(self, weight: Tensor, potentiation: Tensor, depression: Tensor) -> Tensor:
        """The change of the weights, from the two sums over pairs; all have shape ``[outputs, inputs]``."""
        if self.bounds is None or not self.soft:
            return self.a_plus * potentiation - self.a_minus * depression
        lower, upper = self.bounds
        return self.a_plus * (upper - weight) * potentiation - self.a_minus * (weight - lower) * depression

    def apply(self, weight: Tensor, change: Tensor) -> None:
        """Adds `change` to `weight` in place, and clips the weights to the bounds."""
        weight.add_(change)
        if self.bounds is not None:
            weight.clamp_(*self.bounds)

    def run(
        self, weight: Tensor, bias: Tensor | None, cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs a sequence, and changes the weights in place at each step.

        Args:
            weight: ``[outputs, inputs]``.
            bias: ``[outputs]``.
            cell: one step of the neurons.
            inputs: spikes, ``[T, batch, inputs]``.
            state: the states of the neurons, the traces of the inputs, and the traces of the neurons.

        Returns:
            The spikes, ``[T, batch, outputs]``, and the state after the last step.
        """
        *neurons, pre, post = state
        outputs = []
        for step in inputs.unbind():
            neurons = [*check_states(cell, cell(functional.linear(step, weight, bias), *neurons))]
            spikes = neurons[-1]
            pre = self.next_trace(pre, step, self.tau_pre)
            post = self.next_trace(post, spikes, self.tau_post)
            self.apply(weight, self.weight_change(weight, spikes.T @ pre, post.T @ step))
            outputs.append(spikes)
        return torch.stack(outputs), (*neurons, pre, post)

    def total_change(
        self, weight: Tensor, inputs: Tensor, spikes: Tensor, gain: Tensor | None = None
    ) -> Tensor:
        """The change ``[outputs, inputs]`` over a sequence with constant weights and traces from zero.

        Args:
            weight: ``[outputs, inputs]``.
            inputs: ``[T, batch, inputs]``.
            spikes: ``[T, batch, outputs]``.
            gain: factor of the change at each step and sample, ``[T, batch]``; 1 if None.
        """
        pre, post = self.traces(inputs, self.tau_pre), self.traces(spikes, self.tau_post)
        if gain is not None:
            pre, post = pre * gain[..., None], post * gain[..., None]
        potentiation = spikes.flatten(0, 1).T @ pre.flatten(0, 1)
        depression = post.flatten(0, 1).T @ inputs.flatten(0, 1)
        return self.weight_change(weight, potentiation, depression)


def check_rate(name: str, rate: float) -> None:
    """Raises ``ValueError`` if `rate`, called `name`, is not finite and at least 0."""
    if not _is_number(rate) or not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {rate!r}")


def check_time_constant(name: str, tau: float) -> None:
    """Raises ``ValueError`` if `tau`, called `name`, is not at least 1."""
    if not _is_number(tau) or not tau >= 1:
        raise ValueError(f"{name} must be a number of time steps, at least 1, got {tau!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
