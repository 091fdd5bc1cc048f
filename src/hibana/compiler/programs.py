"""The bounded caches of compiled programs: a step's trace and plan with a backend's kernels.

Cells of one fingerprint share a program: of one class, equal hyper-parameters and tensors of equal shapes.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from hibana.cells import Cell
from hibana.cells.base import INTERNAL, Internal
from hibana.compiler.graph.fingerprint import followed
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.watch import held, hooked, unchanged
from hibana.compiler.shared import Bounded
from hibana.compiler.tensors import shape_class, tensors_of

if TYPE_CHECKING:
    from hibana.compiler.compiling import Program


def program(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> "Program":
    """The program of `cell` for steps of `shape`, compiled on first use.

    Raises:
        Unsupported: if there can be none, with the reason.
    """
    place = (backend, shape, dtype)
    found: Program | None = known(cell, place)
    if found:
        return found
    read = followed(cell)
    served = read.served.get(place)
    if served is None:
        served = _SHARED.get((read.key, place)) or _shared_program(cell, read.key, place)
        read.served[place] = served
    if isinstance(served, str):
        raise Unsupported(served)
    attach(cell, place, served)
    return served


def known(cell: Cell, call: Hashable) -> Any:
    """What was attached to `call`, unless anything that the step of `cell` reads has changed."""
    own: Internal | None = cell.__dict__.get(INTERNAL)
    if own is None or not (calls := own.calls) or not _is_bare(cell):
        return None
    outside = own.outside
    return None if outside is not None and not unchanged(*outside) else calls.get(_of(cell, call))


def attach(cell: Cell, call: Hashable, what: Any) -> None:
    """Lets :func:`known` find `what` while the step of `cell` reads the same, if `cell` is plain."""
    if is_plain(cell):
        own = getattr(cell, INTERNAL)
        if own.calls is None:
            own.calls = Bounded(CALLS)
        found = own.followed
        own.outside = (found.items, found.watched) if found.items or found.watched else None
        own.calls[_of(cell, call)] = what


CALLS = 128
"""Maximum calls per cell, which differ in shape, dtype, threads, …"""
PROGRAMS = 1024

_Place = tuple[str, torch.Size, torch.dtype]
_SHARED: "dict[Hashable, Program | str]" = Bounded(PROGRAMS)


def is_plain(cell: Cell) -> bool:
    """Whether nothing but setting an attribute can change what `cell` computes."""
    return _is_bare(cell) and followed(cell).plain


def _is_bare(cell: Cell) -> bool:
    return not (cell._modules or hooked(cell))


def _of(cell: Cell, call: Hashable) -> Hashable:
    """`call`, and the cell's tensors but their values: these can be replaced without setting an attribute."""
    parameters, buffers = cell._parameters, cell._buffers
    if not (parameters or buffers):
        return call
    devices = [None if t is None else t.device for t in (*parameters.values(), *buffers.values())]
    return call, held(parameters), held(buffers), *devices


def _shared_program(cell: Cell, alike: Hashable, place: _Place) -> "Program | str":
    """The program of cells with the fingerprint `alike` for this shape or for any size, else a new one."""
    backend, shape, dtype = place
    anywhere = (backend, shape_class(tensors_of(cell), shape), dtype)
    found: Program | str | None = _SHARED.get((alike, anywhere))
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
