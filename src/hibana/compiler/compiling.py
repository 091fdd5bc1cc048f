"""Compiles one cell: traces its step, plans the residuals, makes the kernels. Loaded on first use."""

from collections.abc import Hashable, MutableMapping
from dataclasses import replace
from typing import Any

import torch

from hibana.cells import Cell
from hibana.compiler.analysis.bounds import guard_products
from hibana.compiler.backend import Kernels, kernel_class
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.serial import structure_key
from hibana.compiler.graph.synapses import required_residuals, with_computed_operands
from hibana.compiler.graph.trace import trace


def compile_cell(
    cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype, cache: MutableMapping[Hashable, Any]
) -> Kernels:
    """The kernels of `cell` for steps of `shape`.

    Steps that differ only in their constants share kernels. `cache` holds those of the first such step.
    Raises Unsupported if the step can't be compiled, with the reason.
    """
    traced_step = trace(cell, shape, dtype, kernel_class(backend).device(), draws=True, sparse=True)
    step = with_computed_operands(guard_products(traced_step))
    key = backend, dtype, structure_key(step)
    shared: Kernels | None = cache.get(key)
    if shared is not None:
        shared.check(shape)
        # The plan of the kernels refers to the values of their own step, so only constants are replaced.
        constants = {name: getattr(step, name) for name in ("constants", "prologue", "epilogue", "any_size")}
        return shared.for_step(replace(shared.step, **constants))
    kernels_class = kernel_class(backend, bool(step.matrices))
    if step.sparse and not kernels_class.takes_sparse:
        raise Unsupported(f"backend {backend!r} computes no sparse synapses")
    if step.draws and not kernels_class.takes_draws:
        raise Unsupported(f"the step draws random numbers, and backend {backend!r} draws none")
    kernels = kernels_class(step, make_plan(step, required_residuals(step)), dtype)
    kernels.check(shape)
    cache[key] = kernels
    return kernels
