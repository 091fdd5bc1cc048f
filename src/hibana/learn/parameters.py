"""Traces of the parameters of a cell: for each of them and each state, one number per sample and neuron."""

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
from hibana.learn.runs import Gradients, Run

__all__ = ["Expanded", "ParameterTraces", "after", "gradients"]

ParameterTraces = list[list[Tensor]]
"""Of each parameter, the derivative of each state by it, then that of the memory of a readout."""


@final
class Expanded:
    """A copy of a cell whose learned parameters have a number for each sample and neuron.

    Raises:
        Unsupported: if a parameter is not used neuron by neuron.
    """

    def __init__(self, cell: Cell, like: Tensor) -> None:
        self.cell = copy.deepcopy(cell)
        self._places = [
            (copied, name, parameter)
            for module, copied in zip(cell.modules(), self.cell.modules(), strict=True)
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]
        shape = torch.Size([2, *like.shape[1:]])
        try:
            self.values(like.new_zeros(shape))
        except RuntimeError as error:
            raise Unsupported(f"a learned parameter does not broadcast to its neurons: {error}") from error
        if not _is_by_neuron(trace(self.cell, shape, like.dtype)):
            raise Unsupported("a learned parameter is not used neuron by neuron")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The learned parameters of the cell."""
        return [parameter for _, _, parameter in self._places]

    def values(self, step: Tensor) -> list[Tensor]:
        """Gives the copy the current values, for a step of input ``[batch, ...]``, and returns them."""
        found = [nn.Parameter(one.detach().expand(step.shape).contiguous()) for one in self.parameters]
        for (module, name, _), value in zip(self._places, found, strict=True):
            module._parameters[name] = value
        return list(found)


def after(before: ParameterTraces, run: Run, leak: Tensor | None) -> ParameterTraces:
    """The traces after a chunk, from those `before` it, none at rest."""
    ends: list[int | None] = [*range(len(run.last)), *([] if leak is None else [None])]
    found: ParameterTraces = [[] for _ in run.parameters]
    for end in ends:
        grads = run.at_end(end, leak)
        factors = list(grads.of_states)
        if end is None and leak is not None:
            factors.append(leak ** len(run.outputs))
        for traces, total in zip(found, _totals(before, grads, factors), strict=True):
            traces.append(total)
    return found


def gradients(before: ParameterTraces, grads: Gradients, of_readout: Tensor | None) -> list[Tensor]:
    """The gradients of the parameters, for each sample and neuron, with what lies before the chunk.

    Args:
        before: the traces before the chunk.
        grads: those of the learning signal within the chunk.
        of_readout: the gradient of the memory of a readout before the chunk, if there is one.
    """
    return _totals(before, grads, [*grads.of_states, of_readout])


def _totals(before: ParameterTraces, grads: Gradients, factors: Sequence[Tensor | None]) -> list[Tensor]:
    found = []
    for i, within in enumerate(grads.of_parameters):
        total = torch.zeros_like(grads.of_drive[0]) if within is None else within
        for factor, trace_before in zip(factors, before[i] if before else (), strict=False):
            if factor is not None:
                total = total + factor * trace_before
        found.append(total)
    return found


def _is_by_neuron(step: Step) -> bool:
    """Whether the gradient of each tensor of a cell is one of the sums of numbers of neurons."""
    part = step.epilogue
    assert isinstance(part, Part)
    first = part.input_count - len(step.grad_sums) - len(step.outer)
    return all(end is None or first <= end < first + len(step.grad_sums) for end in part.outputs)
