"""A copy of a cell with one number of each learned parameter per sample and neuron."""

import copy
from typing import final

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.part import Part
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace

__all__ = ["ExpandedCell"]


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


def _acts_by_neuron(step: Step) -> bool:
    """Whether each parameter's number for a neuron acts on this neuron alone."""
    part = step.epilogue
    assert isinstance(part, Part)
    first = part.input_count - len(step.grad_sums) - len(step.outer)
    return all(end is None or first <= end < first + len(step.grad_sums) for end in part.outputs)
