"""The pair rule in plain PyTorch: the specification of the kernel, and what runs where that can't.

How arguments are checked is not here.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.cells.spiking import decay
from hibana.compiler import unrolled

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """How pairs of spikes change a weight; the arguments of :class:`hibana.learn.STDP`."""

    tau_pre: float
    tau_post: float
    a_plus: float
    a_minus: float
    bounds: tuple[float, float] | None
    soft: bool
    nearest: bool

    def traced(self, trace: Tensor, spikes: Tensor, tau: float) -> Tensor:
        """The trace after a step with these spikes."""
        faded = trace * decay(tau)
        return torch.maximum(faded, spikes) if self.nearest else faded + spikes

    def traces(self, spikes: Tensor, tau: float) -> Tensor:
        """The trace after each step, ``[T, batch, neurons]``, from zero."""
        return unrolled(_trace_cell(self.nearest, tau), spikes)[0]

    def changed(self, weight: Tensor, potentiation: Tensor, depression: Tensor) -> Tensor:
        """The change of the weights, from the two sums over pairs, ``[outputs, inputs]``."""
        if self.bounds is None or not self.soft:
            return self.a_plus * potentiation - self.a_minus * depression
        lower, upper = self.bounds
        return self.a_plus * (upper - weight) * potentiation - self.a_minus * (weight - lower) * depression

    def apply(self, weight: Tensor, change: Tensor) -> None:
        """Adds the change to the weights, in place, within the bounds."""
        weight.add_(change)
        if self.bounds is not None:
            weight.clamp_(*self.bounds)

    def run(
        self,
        weight: Tensor,
        bias: Tensor | None,
        cell: Cell,
        inputs: Tensor,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs a sequence with the weights changing at each step, in place.

        Args:
            weight: ``[outputs, inputs]``.
            bias: ``[outputs]``.
            cell: one step of the neurons.
            inputs: spikes, ``[T, batch, inputs]``.
            state: the states of the neurons, the traces of the inputs, and those of the neurons.

        Returns:
            The spikes, ``[T, batch, outputs]``, and the state after the last step.
        """
        *neurons, pre, post = state
        emitted = []
        for sent in inputs.unbind():
            neurons = [*check_states(cell, cell(functional.linear(sent, weight, bias), *neurons))]
            fired = neurons[-1]
            pre = self.traced(pre, sent, self.tau_pre)
            post = self.traced(post, fired, self.tau_post)
            self.apply(weight, self.changed(weight, fired.T @ pre, post.T @ sent))
            emitted.append(fired)
        return torch.stack(emitted), (*neurons, pre, post)

    def summed(self, weight: Tensor, inputs: Tensor, spikes: Tensor, gain: Tensor | None = None) -> Tensor:
        """The change of constant weights over a sequence from rest, ``[outputs, inputs]``.

        Args:
            weight: ``[outputs, inputs]``.
            inputs: ``[T, batch, inputs]``.
            spikes: ``[T, batch, outputs]``.
            gain: by which the change of each step and sample counts, ``[T, batch]``; 1 if None.
        """
        pre, post = self.traces(inputs, self.tau_pre), self.traces(spikes, self.tau_post)
        if gain is not None:
            pre, post = pre * gain[..., None], post * gain[..., None]
        potentiation = spikes.flatten(0, 1).T @ pre.flatten(0, 1)
        depression = post.flatten(0, 1).T @ inputs.flatten(0, 1)
        return self.changed(weight, potentiation, depression)


class _Trace(Cell):
    """A trace of spikes as a cell, so that it is compiled over time."""

    emits_spikes = False

    def __init__(self, nearest: bool, tau: float) -> None:
        super().__init__()
        self.nearest, self.kept = nearest, decay(tau)

    def forward(self, input_: Tensor, trace: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        faded = trace * self.kept
        return (torch.maximum(faded, input_) if self.nearest else faded + input_,)


@lru_cache(maxsize=64)
def _trace_cell(nearest: bool, tau: float) -> Cell:
    """One object for each kind of trace, for a cell remembers its kernels."""
    return _Trace(nearest, tau)
