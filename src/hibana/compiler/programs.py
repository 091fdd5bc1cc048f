"""The cache of runs and kernels, on two levels, each of bounded size; the registration of hibana's backends.

- A cell remembers its runs and kernels while nothing that its step reads has changed (:func:`recall`,
  :func:`remember`). The key of a run holds backend, shape, strides, dtype, threads and so on.
- All cells share one dictionary. Cells of one class with equal hyper-parameters and tensors of equal shapes
  share kernels (:func:`kernels_of`), and so do steps that differ only in their constants.

A backend is imported when a step is first compiled for it.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch

from hibana.cells import Cell
from hibana.cells.base import CACHE_ATTRIBUTE, CellCache
from hibana.compiler.analysis.bounds import guard_products
from hibana.compiler.backend import Backend, Kernels, kernel_class, register
from hibana.compiler.graph.dependencies import CELL_PROGRAMS, Dependencies, dependencies_of, store
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.serial import structure_key
from hibana.compiler.graph.synapses import required_residuals, with_computed_operands
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import shape_class, tensors_of
from hibana.runtime import torch_internals

SHARED_PROGRAMS = 1280
"""Maximum entries of :data:`_SHARED`."""
_SHARED: dict[Hashable, Kernels | str] = {}
"""Kernels by the fingerprint of a cell and by the structure of a step, or the reason for their absence."""


def kernels_of(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> Kernels:
    """The kernels of `cell` for steps of `shape`, compiled on first use.

    Raises Unsupported if the step can't be compiled, with the reason.
    """
    dependencies = dependencies_of(cell)
    key = (backend, shape, dtype)
    result: Kernels | str | None = dependencies.cache.get(key)
    if result is None:
        result = _shared_kernels(cell, dependencies.key, backend, shape, dtype)
        store(dependencies.cache, CELL_PROGRAMS, key, result)
    if isinstance(result, str):
        raise Unsupported(result)
    return result


def recall(cell: Cell, run: Hashable) -> Any:
    """The result of :func:`remember` for the key `run`; None if an object that the step reads has changed."""
    cache: CellCache | None = cell.__dict__.get(CACHE_ATTRIBUTE)
    dependencies: Dependencies | None = None if cache is None else cache.dependencies
    if dependencies is None or not _is_bare(cell):
        return None
    # Setting an attribute of the cell clears its cache; replacing a tensor in place of another does not.
    has_tensors = cell._parameters or cell._buffers
    is_unchanged = dependencies.is_valid_for(cell) if has_tensors else dependencies.is_unchanged()
    return dependencies.cache.get(run) if is_unchanged else None


def remember(cell: Cell, run: Hashable, result: Any) -> None:
    """Stores `result` under the key `run` for :func:`recall`, unless `cell` holds modules or has hooks."""
    if _is_bare(cell):
        store(dependencies_of(cell).cache, CELL_PROGRAMS, run, result)


def _is_bare(cell: Cell) -> bool:
    """Whether `cell` holds no module and has no hook."""
    return not (cell._modules or torch_internals.has_hooks(cell))


def _shared_kernels(
    cell: Cell, fingerprint: Hashable, backend: str, shape: torch.Size, dtype: torch.dtype
) -> Kernels | str:
    """The kernels of all cells with one `fingerprint`, compiled on first use, or the reason it is absent."""
    exact_key = fingerprint, backend, shape, dtype
    any_size_key = fingerprint, backend, shape_class(tensors_of(cell), shape), dtype
    result = _SHARED.get(exact_key) or _SHARED.get(any_size_key)
    if result:
        return result
    try:
        kernels = _compile(cell, backend, shape, dtype)
    except Unsupported as reason:
        store(_SHARED, SHARED_PROGRAMS, exact_key, str(reason))
        return str(reason)
    store(_SHARED, SHARED_PROGRAMS, any_size_key if kernels.step.any_size else exact_key, kernels)
    return kernels


def _compile(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> Kernels:
    """Traces the step of `cell`, plans its residuals and makes its kernels for steps of `shape`.

    Steps that differ only in their constants share the kernels of the first such step. Raises Unsupported if
    the step can't be compiled, with the reason.
    """
    traced_step = trace(cell, shape, dtype, kernel_class(backend).device(), draws=True, sparse=True)
    step = with_computed_operands(guard_products(traced_step))
    key = backend, dtype, structure_key(step)
    shared = _SHARED.get(key)
    if isinstance(shared, Kernels):
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
    store(_SHARED, SHARED_PROGRAMS, key, kernels)
    return kernels


def _cpu_kernels(products: bool) -> type[Kernels]:
    """The class of CPU kernels of steps with or without matrix `products`."""
    if products:
        from hibana.compiler.cpu.sample_kernels import SampleKernels

        return SampleKernels
    from hibana.compiler.cpu.kernels import CpuKernels

    return CpuKernels


def _cpu_refusal(device: str) -> str:
    """The reason why the CPU backend can't run on a type of `device`, or an empty text."""
    from hibana.runtime import available

    return available.unavailable_reason() if device == "cpu" else f"it serves cpu, not {device}"


def _triton_kernels(products: bool) -> type[Kernels]:
    """The class of Triton kernels of steps with or without matrix `products`."""
    from hibana.compiler.triton.kernels import GpuKernels, SampleKernels

    return SampleKernels if products else GpuKernels


def _triton_refusal(device: str) -> str:
    """The reason why the Triton backend can't run on a type of `device`, or an empty text."""
    from hibana.compiler.triton import kernels as gpu

    return gpu.refusal(device)


register(Backend("cpu", ("cpu",), _cpu_kernels, _cpu_refusal))
register(Backend("triton", ("cuda",), _triton_kernels, _triton_refusal))
