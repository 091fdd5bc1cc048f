"""Traces of a cell's parameters: one number per parameter, state, sample and neuron."""

import copy
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.part import Part
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.learn.rule_cells import CellRun, Gradients

__all__ = ["ExpandedCell", "ParameterTraces", "advance", "gradients"]

ParameterTraces = list[list[Tensor]]
"""For each parameter: the derivative of each state by it, then that of a leaky readout's memory."""


@final
class ExpandedCell:
    """A copy of a cell whose learned parameters have one number for each sample and neuron.

    Raises:
        Unsupported: if a parameter does not broadcast to the neurons, or acts on other neurons too.
    """

    def __init__(self, cell: Cell, example: Tensor) -> None:
        self.cell = copy.deepcopy(cell)
        self._slots = [
            (copied, name, parameter)
            for module, copied in zip(cell.modules(), self.cell.modules(), strict=True)
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]
        shape = torch.Size([2, *example.shape[1:]])
        try:
            self.expand(example.new_zeros(shape))
        except RuntimeError as error:
            raise Unsupported(f"a learned parameter does not broadcast to its neurons: {error}") from error
        if not _acts_by_neuron(trace(self.cell, shape, example.dtype)):
            raise Unsupported("a learned parameter is not used neuron by neuron")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The learned parameters of the original cell."""
        return [parameter for _, _, parameter in self._slots]

    def expand(self, step: Tensor) -> list[Tensor]:
        """Sets the copy's parameters to the current values, with the shape of `step`, and returns them."""
        values = [nn.Parameter(p.detach().expand(step.shape).contiguous()) for p in self.parameters]
        for (module, name, _), value in zip(self._slots, values, strict=True):
            module._parameters[name] = value
        return list(values)


def advance(traces: ParameterTraces, run: CellRun, leak: Tensor | None) -> ParameterTraces:
    """The parameters' traces after a chunk: a number of steps that run together.

    Args:
        traces: the traces before the chunk; empty in the resting state.
        run: the cell's outputs and states over the chunk, with their autograd graph.
        leak: the decay factor of a leaky readout behind the neurons; None without a leaky readout.
    """
    new_traces: ParameterTraces = [[] for _ in run.parameters]
    for state in [*range(len(run.last)), *([] if leak is None else [None])]:
        grads = run.end_gradients(state, leak)
        readout = leak ** len(run.outputs) if state is None and leak is not None else None
        for parameter_traces, total in zip(new_traces, gradients(traces, grads, readout), strict=True):
            parameter_traces.append(total)
    return new_traces


def gradients(traces: ParameterTraces, grads: Gradients, readout_grad: Tensor | None) -> list[Tensor]:
    """The gradient of each parameter, ``[batch, neurons...]``, including the steps before a chunk of steps.

    Args:
        traces: for each parameter the derivatives of the states before the chunk; empty in the resting state.
        grads: gradients of the parameters and of the states before the chunk, from the chunk's steps alone.
        readout_grad: the gradient of a leaky readout's memory before the chunk; None is zero.
    """
    factors: Sequence[Tensor | None] = [*grads.states, readout_grad]
    totals = []
    for i, grad in enumerate(grads.parameters):
        total = torch.zeros_like(grads.neuron_inputs[0]) if grad is None else grad
        for factor, trace_before in zip(factors, traces[i] if traces else (), strict=False):
            if factor is not None:
                total = total + factor * trace_before
        totals.append(total)
    return totals


def _acts_by_neuron(step: Step) -> bool:
    """Whether each parameter's number for a neuron acts on this neuron alone."""
    part = step.epilogue
    assert isinstance(part, Part)
    first = part.input_count - len(step.grad_sums) - len(step.outer)
    return all(end is None or first <= end < first + len(step.grad_sums) for end in part.outputs)
