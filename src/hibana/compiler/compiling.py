"""Compiles one step: traces and plans it, and makes a backend's kernels for it. Loaded on first use."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.analysis.bounds import guard_products
from hibana.compiler.backend import Kernels, kernels_of
from hibana.compiler.bounded_dict import BoundedDict
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import Plan, make_plan
from hibana.compiler.graph.serial import structure_key
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import required_residuals, with_computed_operands
from hibana.compiler.graph.trace import trace
from hibana.compiler.memory_layout import Order, inverse_order, step_order, step_to_order

STRUCTURES = 256
_BY_STRUCTURE: BoundedDict[object, tuple[Step, Kernels]] = BoundedDict(STRUCTURES)


@dataclass(frozen=True)
class Program:
    """One step, compiled for one shape, dtype and device."""

    step: Step
    plan: Plan
    kernels: Kernels
    at_rest: tuple[None, ...]
    """Initial states that are zeros."""

    def parameters(
        self, cell_tensors: Sequence[Tensor], inputs: Tensor, order: Order | None = None
    ) -> list[Tensor]:
        """The kernels' parameters, a number or one per neuron, and matrices, from the cell's tensors.

        `inputs` and results have the memory `order`.
        """
        if not (self.step.parameters or self.step.matrices):
            return []
        one, dtype, count = inputs.shape[1:], self.kernels.dtype, self.step.parameters
        with torch.no_grad():
            values = self.step.prologue(*cell_tensors)
            parameters = [value.to(dtype).resolve_neg() for value in values[:count]]
            for i, value in enumerate(parameters):
                if value.numel() > 1:
                    parameters[i] = step_to_order(order, value.expand(_shape(one, order)))
            return parameters + [matrix.detach().resolve_neg() for matrix in values[count:]]


def _shape(one: torch.Size, order: Order | None) -> torch.Size:
    """The shape in the caller's order of dimensions of `one` step that is in memory `order`."""
    return one if order is None else torch.Size([one[d] for d in step_order(inverse_order(order))])


def program_of(step: Step, kernels: Kernels) -> Program:
    """The program of `step` with its `kernels`."""
    return Program(step, kernels.plan, kernels, (None,) * len(step.states))


def compiled(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> tuple[Step, Kernels]:
    """The step of `cell`, and its kernels, which steps share that differ in their constants alone."""
    traced = trace(cell, shape, dtype, kernels_of(backend).device(), draws=True)
    step = with_computed_operands(guard_products(traced))
    alike = (backend, dtype, structure_key(step))
    found = _BY_STRUCTURE.get(alike)
    if found is None:
        make = kernels_of(backend, bool(step.matrices))
        if step.draws and not make.takes_draws:
            raise Unsupported(f"the step draws random numbers, and backend {backend!r} draws none")
        kernels = make(step, make_plan(step, required_residuals(step)), dtype)
        kernels.check(shape)
        _BY_STRUCTURE[alike] = step, kernels
        return step, kernels
    first, kernels = found  # whose plan speaks of the values of the first step
    kernels.check(shape)
    own = {name: getattr(step, name) for name in ("constants", "prologue", "epilogue", "any_size")}
    step = replace(first, **own)
    return step, kernels.alike(step)
