"""The cache of calls, on three levels, each of them bounded.

- a cell remembers its calls and programs in one dictionary while everything that its step reads is unchanged
  (:func:`known`, :func:`attach`): backend, shape, strides, dtype, threads and so on lead to the specification
  of a run;
- cells of one fingerprint share programs (:func:`program`), a step's trace and plan with a backend's kernels:
  cells of one class, with equal hyper-parameters and tensors of equal shapes;
- steps that differ in constants alone share kernels (:mod:`hibana.compiler.compiling`).

The package's own backends are registered here; each is imported when a step is first compiled for it.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from hibana.cells import Cell
from hibana.cells.base import CACHE_ATTRIBUTE, CellCache
from hibana.compiler.backend import Backend, Kernels, register
from hibana.compiler.bounded_dict import BoundedDict
from hibana.compiler.graph.dependencies import Dependencies, dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.snapshots import has_hooks, is_unchanged, tensor_properties
from hibana.compiler.tensors import shape_class, tensors_of

if TYPE_CHECKING:
    from hibana.compiler.compiling import Program


def program(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> "Program":
    """The program of `cell` for steps of `shape`, compiled on first use.

    Raises:
        Unsupported: if there can be none, with the reason.
    """
    place = (backend, shape, dtype)
    read = dependencies_of(cell)
    found: Program | str | None = read.cache.get(place)
    if found is None:
        found = read.cache[place] = _shared_program(cell, read.key, place)
    if isinstance(found, str):
        raise Unsupported(found)
    return found


def known(cell: Cell, call: Hashable) -> Any:
    """What was attached to `call`, unless anything that the step of `cell` reads has changed."""
    internal: CellCache | None = cell.__dict__.get(CACHE_ATTRIBUTE)
    read: Dependencies | None = None if internal is None else internal.dependencies
    if read is None or not _is_bare(cell):
        return None
    if (read.items or read.snapshots) and not is_unchanged(read.items, read.snapshots):
        return None
    return read.cache.get(_of(cell, call))


def attach(cell: Cell, call: Hashable, what: Any) -> None:
    """Lets :func:`known` find `what` while the step of `cell` reads the same, if `cell` is bare."""
    if _is_bare(cell):
        dependencies_of(cell).cache[_of(cell, call)] = what


PROGRAMS = 1024

_Place = tuple[str, torch.Size, torch.dtype]
_SHARED: "dict[Hashable, Program | str]" = BoundedDict(PROGRAMS)


def _is_bare(cell: Cell) -> bool:
    """Whether `cell` holds no module and has no hook."""
    return not (cell._modules or has_hooks(cell))


def _of(cell: Cell, call: Hashable) -> Hashable:
    """A key for `call`: with it the cell's parameters and buffers, but for their values.

    These can be replaced without an attribute being set, which is what else makes a call another.
    """
    parameters, buffers = cell._parameters, cell._buffers
    if not (parameters or buffers):
        return call
    devices = [None if t is None else t.device for t in (*parameters.values(), *buffers.values())]
    return call, tensor_properties(parameters), tensor_properties(buffers), *devices


def _shared_program(cell: Cell, alike: Hashable, place: _Place) -> "Program | str":
    """The program of cells with the fingerprint `alike` for this shape or for any size, else a new one."""
    backend, shape, dtype = place
    anywhere = (backend, shape_class(tensors_of(cell), shape), dtype)
    found: Program | str | None = _SHARED.get((alike, place)) or _SHARED.get((alike, anywhere))
    if found:
        return found
    from hibana.compiler import compiling

    try:
        step, kernels = compiling.compiled(cell, backend, shape, dtype)
    except Unsupported as reason:
        found = str(reason)
        _SHARED[alike, place] = found
    else:
        found = compiling.program_of(step, kernels)
        _SHARED[alike, anywhere if step.any_size else place] = found
    return found


def _of_cpu(products: bool) -> type[Kernels]:
    if products:
        from hibana.compiler.cpu.sample_kernels import SampleKernels

        return SampleKernels
    from hibana.compiler.cpu.row_kernels import CpuKernels

    return CpuKernels


def _cpu_refuses(device: str) -> str:
    from hibana.runtime import available

    return available.unavailable_reason() if device == "cpu" else f"it serves cpu, not {device}"


def _of_triton(products: bool) -> type[Kernels]:
    from hibana.compiler.triton.kernels import GpuKernels, SampleKernels

    return SampleKernels if products else GpuKernels


def _triton_refuses(device: str) -> str:
    from hibana.compiler.triton import kernels as gpu

    return gpu.refusal(device)


register(Backend("cpu", ("cpu",), _of_cpu, _cpu_refuses))
register(Backend("triton", ("cuda",), _of_triton, _triton_refuses))
