"""Runs of a cell over a chunk of steps with a graph, and gradients of what they give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler import unroll_layer
from hibana.learn.rule_cells import Around

__all__ = ["Gradients", "Run", "filtered", "run"]


class Gradients(NamedTuple):
    """Gradients with respect to what a run depends on; None is zero."""

    of_drive: Tensor
    """Of the neurons' input at each step, ``[T, batch, ...]``."""
    of_extra: list[Tensor | None]
    """Of the cell's own states before the chunk."""
    of_states: list[Tensor | None]
    """Of the neurons' states before the chunk."""
    of_parameters: list[Tensor | None]
    """Of the neurons' parameters, for each sample and neuron."""


@dataclass(eq=False)
class Run:
    """A cell that was run over a chunk."""

    outputs: Tensor
    extra: tuple[Tensor, ...]
    """The cell's own states after the chunk."""
    last: tuple[Tensor, ...]
    """The neurons' states after the chunk."""
    drive: Tensor
    before: tuple[Tensor, ...]
    """The cell's own states before the chunk, and those of the neurons; none at rest."""
    parameters: list[Tensor]
    """The neurons' parameters, for each sample and neuron."""
    _ends: dict[int | None, Gradients] = field(default_factory=dict)

    def gradients(self, of: Tensor, grad: Tensor) -> Gradients:
        """Gradients of the outputs, or of a state after the chunk, from the gradient there."""
        leaves = [self.drive, *self.before, *self.parameters]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if of.requires_grad:  # else it is a state without a derivative
            found = torch.autograd.grad(of, leaves, grad, retain_graph=True, allow_unused=True)
        drive, *rest = found
        drive = torch.zeros_like(self.drive) if drive is None else drive
        first, count = len(self.extra), len(self.extra) + len(self.last)
        if not self.before:
            rest = [*(None for _ in range(count)), *rest]
        return Gradients(drive, rest[:first], rest[first:count], rest[count:])

    def at_end(self, state: int | None, leak: Tensor | None) -> Gradients:
        """Gradients of a state of the neurons after the chunk; None: of the memory of a readout."""
        if state not in self._ends:
            of = self.outputs if state is None else self.last[state]
            grad = torch.ones_like(of)
            if state is None and leak is not None:
                ages = torch.arange(len(of) - 1, -1, -1, dtype=leak.dtype, device=leak.device)
                grad *= (leak**ages).view(-1, *[1] * (of.ndim - 1))
            self._ends[state] = self.gradients(of, grad)
        return self._ends[state]


def run(cell: Around, drive: Tensor, state: tuple[Tensor, ...] | None, parameters: list[Tensor]) -> Run:
    """Runs `cell` over ``[T, batch, ...]`` from a state of its neurons, at rest if None."""
    cell.take_weights()
    with torch.enable_grad():
        leaf = drive.detach().requires_grad_()
        before = () if state is None else cell.from_state(state)
        before = tuple([one.detach().requires_grad_() for one in before])
        outputs, last = unroll_layer(cell, leaf, before or None)
    count = len(cell.extra)
    return Run(outputs, last[:count], last[count:], leaf, before, parameters)


def filtered(signal: Tensor, leak: Tensor | None) -> Tensor:
    """The gradient of the inputs of a leaky memory at each step, from that of its outputs."""
    if leak is None:
        return signal
    found = signal.clone()
    steps = found.unbind()
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(leak, steps[t + 1])
    return found
