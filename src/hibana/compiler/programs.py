"""The cache of runs and kernels, on two levels, each of bounded size; the registration of hibana's backends.

- A cell remembers its runs and kernels while nothing that its step reads has changed (:func:`recall`,
  :func:`remember`). The key of a run holds backend, shape, strides, dtype, threads and so on.
- All cells share one dictionary. Cells of one class with equal hyper-parameters and tensors of equal shapes
  share kernels (:func:`kernels_of`), and so do steps that differ only in their constants
  (:mod:`hibana.compiler.compiling`).

A backend is imported when a step is first compiled for it.
"""

from collections.abc import Hashable
from typing import Any

import torch

from hibana.cells import Cell
from hibana.cells.base import CACHE_ATTRIBUTE, CellCache
from hibana.compiler.backend import Backend, Kernels, register
from hibana.compiler.bounded_dict import BoundedDict
from hibana.compiler.graph.dependencies import Dependencies, dependencies_of
from hibana.compiler.graph.objects import has_hooks, tensor_properties
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.tensors import shape_class, tensors_of

SHARED_PROGRAMS = 1280
_SHARED: "BoundedDict[Hashable, Kernels | str]" = BoundedDict(SHARED_PROGRAMS)
"""Kernels by the fingerprint of a cell and by the structure of a step, or the reason for their absence."""


def kernels_of(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> Kernels:
    """The kernels of `cell` for steps of `shape`, compiled on first use.

    Raises Unsupported if the step can't be compiled, with the reason.
    """
    dependencies = dependencies_of(cell)
    key = (backend, shape, dtype)
    result: Kernels | str | None = dependencies.cache.get(key)
    if result is None:
        result = dependencies.cache[key] = _shared_kernels(cell, dependencies.key, backend, shape, dtype)
    if isinstance(result, str):
        raise Unsupported(result)
    return result


def recall(cell: Cell, run: Hashable) -> Any:
    """The result of :func:`remember` for the key `run`; None if an object that the step reads has changed."""
    cache: CellCache | None = cell.__dict__.get(CACHE_ATTRIBUTE)
    dependencies: Dependencies | None = None if cache is None else cache.dependencies
    if dependencies is None or not (_is_bare(cell) and dependencies.is_unchanged()):
        return None
    return dependencies.cache.get(_run_key(cell, run))


def remember(cell: Cell, run: Hashable, result: Any) -> None:
    """Stores `result` under the key `run` for :func:`recall`, unless `cell` holds modules or has hooks."""
    if _is_bare(cell):
        dependencies_of(cell).cache[_run_key(cell, run)] = result


def _is_bare(cell: Cell) -> bool:
    """Whether `cell` holds no module and has no hook."""
    return not (cell._modules or has_hooks(cell))


def _run_key(cell: Cell, run: Hashable) -> Hashable:
    """`run` with the properties of the cell's parameters and buffers, but not their values.

    Setting an attribute of the cell clears its cache; replacing a tensor in place of another does not.
    """
    parameters, buffers = cell._parameters, cell._buffers
    if not (parameters or buffers):
        return run
    devices = [None if t is None else t.device for t in (*parameters.values(), *buffers.values())]
    return run, tensor_properties(parameters), tensor_properties(buffers), *devices


def _shared_kernels(
    cell: Cell, fingerprint: Hashable, backend: str, shape: torch.Size, dtype: torch.dtype
) -> Kernels | str:
    """The kernels of all cells with one `fingerprint`, compiled on first use, or the reason it is absent."""
    exact_key = fingerprint, backend, shape, dtype
    any_size_key = fingerprint, backend, shape_class(tensors_of(cell), shape), dtype
    result = _SHARED.get(exact_key) or _SHARED.get(any_size_key)
    if result:
        return result
    from hibana.compiler.compiling import compile_cell

    try:
        kernels = compile_cell(cell, backend, shape, dtype, _SHARED)
    except Unsupported as reason:
        _SHARED[exact_key] = str(reason)
        return str(reason)
    _SHARED[any_size_key if kernels.step.any_size else exact_key] = kernels
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
