"""What is compiled: programs found or made, shared by cells alike, in bounded caches.

A *program* is one step's trace and plan with a device's kernels. Programs are shared by cells that are
alike: of one class, with equal hyper-parameters and tensors of equal shapes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.loop.absent import Absences
from hibana.loop.backend import Kernels, kernels_of
from hibana.loop.graph.bounds import takes_zeros
from hibana.loop.graph.fingerprint import NOT_HYPER, fingerprint, hooked, is_fixed
from hibana.loop.graph.ops import Unsupported
from hibana.loop.graph.plan import Plan, make_plan
from hibana.loop.graph.step import Step
from hibana.loop.graph.synapses import needed
from hibana.loop.graph.trace import shape_class, tensors_of, trace
from hibana.loop.shared import Bounded, structure
from hibana.loop.strides import inverse, step_in

__all__ = ["Program", "known", "program", "program_of", "remember"]


@dataclass(frozen=True)
class Program:
    """One step, compiled for one shape, dtype and device."""

    step: Step
    plan: Plan
    kernels: Kernels
    at_rest: tuple[None, ...]
    """The state begun with, where it is zeros that need not be written out."""
    absences: Absences
    takes_zeros: bool = True
    """Whether its kernels may take gradients that are absent for zeros; else `absences` runs its backward."""

    def parameters(
        self, cell_tensors: Sequence[Tensor], inputs: Tensor, order: list[int] | None = None
    ) -> list[Tensor]:
        """What the kernels take for the cell's tensors: a number, or one per neuron; then the matrices.

        `inputs` are given in the `order` in which they lie in memory.
        """
        if not (self.step.parameters or self.step.matrices):
            return []
        one = inputs.shape[1:]
        shape = one if order is None else [one[d - 1] for d in inverse(order)[1:]]
        with torch.no_grad():
            values = self.step.prologue(*cell_tensors)
        dtype, count = self.kernels.dtype, self.step.parameters
        return [
            value.to(dtype).resolve_neg()
            if value.numel() == 1
            else step_in(order, value.expand(shape).to(dtype))
            for value in values[:count]
        ] + [matrix.detach().resolve_neg() for matrix in values[count:]]


def program(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> Program:
    """The program of `cell` for steps of `shape`, made when first asked for.

    Raises:
        Unsupported: if there can be none; the reason is its message.
    """
    place = (backend, shape, dtype)
    found: Program | None = known(cell, place)
    if found:
        return found
    alike = fingerprint(cell)
    served = _SHARED.get((alike, place)) or _shared_program(cell, alike, place)
    if isinstance(served, str):
        raise Unsupported(served)
    remember(cell, place, served)
    return served


def known(cell: Cell, call: Hashable) -> Any:
    """What was remembered for `call`, unless `cell` can have changed since; else None."""
    made = cell.__dict__.get("made")
    return made.get(call) if made and _is_bare(cell) else None


def remember(cell: Cell, call: Hashable, what: Any) -> None:
    """Has :func:`known` find `what` until an attribute of `cell` is set, if all of it is plain."""
    if _is_plain(cell):
        cell.__dict__.setdefault("made", Bounded(CALLS))[call] = what


CALLS = 128
"""Calls that are remembered of a cell, which differ in shape, dtype, threads, …"""
PROGRAMS = 1024
STRUCTURES = 256

_Place = tuple[str, torch.Size, torch.dtype]
_SHARED: dict[Hashable, Program | str] = Bounded(PROGRAMS)
_BY_STRUCTURE: dict[Hashable, tuple[Step, Kernels]] = Bounded(STRUCTURES)


def _is_plain(cell: Cell) -> bool:
    """Whether nothing but setting an attribute can change what `cell` computes."""
    hyper = (v for k, v in vars(cell).copy().items() if k not in NOT_HYPER)
    return _is_bare(cell) and all(map(is_fixed, hyper))


def _is_bare(cell: Cell) -> bool:
    return not (cell._parameters or cell._buffers or cell._modules or hooked(cell))


def _shared_program(cell: Cell, alike: Hashable, place: _Place) -> Program | str:
    """A program that cells alike have made before, for this shape or for any; else a new one."""
    backend, shape, dtype = place
    anywhere = (backend, shape_class(tensors_of(cell), shape), dtype)
    found: Program | str | None = _SHARED.get((alike, anywhere))
    if found:
        return found
    try:
        step, kernels = _compiled(cell, backend, shape, dtype)
    except Unsupported as reason:
        found = str(reason)
        _SHARED[alike, place] = found
    else:
        found = program_of(step, kernels)
        _SHARED[alike, anywhere if step.any_size else place] = found
    return found


def program_of(step: Step, kernels: Kernels) -> Program:
    """The program of `step` with its `kernels`."""
    zeros = takes_zeros(step)
    if not zeros:
        kernels = kernels.alike(step)
        kernels.recomputing = None  # what a step keeps must be at hand
    return Program(step, kernels.plan, kernels, (None,) * len(step.states), Absences(step, kernels), zeros)


def _compiled(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> tuple[Step, Kernels]:
    """The step of `cell`, and its kernels: those of one that differs in its constants alone, if known."""
    step = trace(cell, shape, dtype, kernels_of(backend).device())
    if (step.matrices or step.blank) and not takes_zeros(step):
        other = "a product" if step.matrices else "an operation without a slope"
        raise Unsupported(f"a derivative of the step may be infinite, beside {other}")
    alike = (backend, dtype, structure(step))
    found = _BY_STRUCTURE.get(alike)
    if found is None:
        make = kernels_of(backend, bool(step.matrices))
        kernels = make(step, make_plan(step, needed(step)), dtype)
        kernels.check(shape)
        _BY_STRUCTURE[alike] = step, kernels
        return step, kernels
    first, kernels = found  # whose plan speaks of the values of the first step
    kernels.check(shape)
    own = {name: getattr(step, name) for name in ("constants", "prologue", "epilogue", "any_size")}
    step = replace(first, **own)
    return step, kernels.alike(step)
