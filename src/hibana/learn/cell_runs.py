"""Runs a cell over a chunk of steps and keeps the graph, for gradients of its outputs and last states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler import unroll_layer
from hibana.learn.rule_cells import RuleCell

__all__ = ["CellRun", "Gradients", "filter_backwards", "run_cell"]


class Gradients(NamedTuple):
    """Gradients with respect to everything that a run depends on; None is zero."""

    neuron_inputs: Tensor
    """Gradient of the neurons' input at each step, ``[T, batch, ...]``."""
    extra: list[Tensor | None]
    """Gradients of the extra states of the :class:`RuleCell` before the chunk."""
    states: list[Tensor | None]
    """Gradients of the neurons' states before the chunk."""
    parameters: list[Tensor | None]
    """Gradients of the cell's parameters, for each sample and neuron."""


@dataclass(eq=False)
class CellRun:
    """The outputs and states of a cell over a chunk, with their autograd graph."""

    outputs: Tensor
    """``[T, batch, ...]``."""
    extra: tuple[Tensor, ...]
    """The cell's extra states after the chunk."""
    last: tuple[Tensor, ...]
    """The neurons' states after the chunk."""
    neuron_inputs: Tensor
    before: tuple[Tensor, ...]
    """The cell's extra states and the neurons' states before the chunk; empty in the resting state."""
    parameters: list[Tensor]
    """The cell's parameters, for each sample and neuron."""
    _end_gradients: dict[int | None, Gradients] = field(default_factory=dict)

    def gradients(self, output: Tensor, grad: Tensor) -> Gradients:
        """Gradients of `output` (the outputs, or a state after the chunk) times `grad`."""
        leaves = [self.neuron_inputs, *self.before, *self.parameters]
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if output.requires_grad:  # a state without a derivative has none
            grads = torch.autograd.grad(output, leaves, grad, retain_graph=True, allow_unused=True)
        of_inputs, *others = grads
        of_inputs = torch.zeros_like(self.neuron_inputs) if of_inputs is None else of_inputs
        first, count = len(self.extra), len(self.extra) + len(self.last)
        if not self.before:
            others = [*(None for _ in range(count)), *others]
        return Gradients(of_inputs, others[:first], others[first:count], others[count:])

    def end_gradients(self, state: int | None, leak: Tensor | None) -> Gradients:
        """Gradients of a neurons' state after the chunk, or of the memory of a readout if `state` is None.

        Args:
            state: index of the state.
            leak: the decay factor of the readout.
        """
        if state not in self._end_gradients:
            output = self.outputs if state is None else self.last[state]
            grad = torch.ones_like(output)
            if state is None and leak is not None:
                ages = torch.arange(len(output) - 1, -1, -1, dtype=leak.dtype, device=leak.device)
                grad *= (leak**ages).view(-1, *[1] * (output.ndim - 1))
            self._end_gradients[state] = self.gradients(output, grad)
        return self._end_gradients[state]


def run_cell(
    cell: RuleCell, inputs: Tensor, state: tuple[Tensor, ...] | None, parameters: list[Tensor]
) -> CellRun:
    """Runs `cell` and keeps the graph.

    Args:
        cell: the cell.
        inputs: the neurons' inputs, ``[T, batch, ...]``.
        state: the neurons' states before the first step; None for the resting state.
        parameters: the cell's parameters, for each sample and neuron.
    """
    cell.copy_weights()
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        before = () if state is None else cell.from_state(state)
        before = tuple([value.detach().requires_grad_() for value in before])
        outputs, last = unroll_layer(cell, leaf, before or None)
    count = len(cell.extra)
    return CellRun(outputs, last[:count], last[count:], leaf, before, parameters)


def filter_backwards(signal: Tensor, leak: Tensor | None) -> Tensor:
    """``f_t = signal_t + leak f_(t+1)``: the gradient of a leaky memory's inputs, from that of its outputs.

    Without a `leak` it is `signal`.
    """
    if leak is None:
        return signal
    result = signal.clone()
    steps = result.unbind()
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(leak, steps[t + 1])
    return result
