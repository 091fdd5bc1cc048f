"""Compiles one cell: traces its step, plans the residuals, makes the kernels. Loaded on first use."""

from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.analysis.bounds import guard_products
from hibana.compiler.backend import Kernels, kernel_class
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.serial import structure_key
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import required_residuals, with_computed_operands
from hibana.compiler.graph.trace import trace
from hibana.compiler.memory_layout import Order, inverse_order, step_order, step_to_order


class Program:
    """One step and its kernels, for one shape, dtype and device."""

    def __init__(self, step: Step, kernels: Kernels) -> None:
        """Stores the `step`, its `kernels`, and their plan of residuals."""
        self.step, self.kernels, self.plan = step, kernels, kernels.plan
        self.zero_states = (None,) * len(step.states)
        """Initial states that are zeros."""

    def parameters(
        self, cell_tensors: Sequence[Tensor], shape: torch.Size, order: Order | None = None
    ) -> list[Tensor]:
        """The kernels' parameters, each one number or one per neuron, then their matrices.

        Args:
            cell_tensors: the parameters and buffers of the cell.
            shape: the shape of a step in memory order.
            order: the memory order of a sequence's dimensions; None if it is the caller's order.
        """
        if not (self.step.parameters or self.step.matrices):
            return []
        dtype, count = self.kernels.dtype, self.step.parameters
        with torch.no_grad():
            values = self.step.prologue(*cell_tensors)
            parameters = [value.to(dtype).resolve_neg() for value in values[:count]]
            if order is not None:
                shape = torch.Size([shape[d] for d in step_order(inverse_order(order))])
            rows = [v if v.numel() == 1 else step_to_order(order, v.expand(shape)) for v in parameters]
            # not the index tensors of sparse matrices: their checks are remembered for these very tensors
            matrices = [t.detach().resolve_neg() if t.is_floating_point() else t for t in values[count:]]
            return rows + matrices


def compile_cell(
    cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype, cache: MutableMapping[Hashable, Any]
) -> Program:
    """The program of `cell` for steps of `shape`.

    Steps that differ only in their constants share kernels. `cache` holds the first program of such steps.
    Raises Unsupported if the step can't be compiled, with the reason.
    """
    traced_step = trace(cell, shape, dtype, kernel_class(backend).device(), draws=True, sparse=True)
    step = with_computed_operands(guard_products(traced_step))
    key = backend, dtype, structure_key(step)
    shared_program: Program | None = cache.get(key)
    if shared_program is None:
        kernels_class = kernel_class(backend, bool(step.matrices))
        if step.sparse and not kernels_class.takes_sparse:
            raise Unsupported(f"backend {backend!r} computes no sparse synapses")
        if step.draws and not kernels_class.takes_draws:
            raise Unsupported(f"the step draws random numbers, and backend {backend!r} draws none")
        program = Program(step, kernels_class(step, make_plan(step, required_residuals(step)), dtype))
        program.kernels.check(shape)
        cache[key] = program
        return program
    shared_program.kernels.check(shape)
    constants = {name: getattr(step, name) for name in ("constants", "prologue", "epilogue", "any_size")}
    # The plan of the shared kernels refers to the values of their own step, so only constants are replaced.
    step = replace(shared_program.step, **constants)
    return Program(step, shared_program.kernels.for_step(step))
