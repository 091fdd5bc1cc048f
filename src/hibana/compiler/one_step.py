"""One step of a cell from a state, prepared once: what :func:`hibana.run` repeats at each of its calls."""

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.autograd import RunSpecification
from hibana.compiler.tensors import tensors_of

if TYPE_CHECKING:
    from hibana.compiler.backend import Kernels
    from hibana.compiler.graph.plan import Plan

_threads = torch.get_num_threads


class OneStep:
    """A cell without tensors over one step, ``[1, ...]``, from a state, on the CPU."""

    __slots__ = ("bytes", "count", "dtype", "kernels", "one", "plan", "run", "threads")

    def __init__(self, spec: RunSpecification, run: Any) -> None:
        program = spec.program
        self.kernels: Kernels = program.kernels
        self.plan: Plan = spec.plan
        """Of a backward."""
        self.one = spec.shape[1:]
        self.dtype, self.count = self.kernels.dtype, len(program.step.states)
        self.bytes = self.one.numel() * self.dtype.itemsize
        self.threads, self.run = _threads(), run

    def goes_on(self, state: Any) -> bool:
        """Whether it was prepared for such a `state`."""
        if type(state) is not tuple or len(state) != self.count:
            return False
        one, dtype = self.one, self.dtype
        for value in state:
            if type(value) is not Tensor or value.shape != one or value.dtype is not dtype:
                return False
            if not (value.is_cpu and value.is_contiguous()) or value.is_neg():
                return False
        return self.threads == _threads()

    def reads(self, inputs: Tensor) -> bool:
        """Whether `inputs` lie in memory as the kernels take them."""
        plain = type(inputs) is Tensor and inputs.dtype is self.dtype and inputs.is_cpu
        return plain and inputs.is_contiguous() and not inputs.is_neg()

    def __call__(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs and the next state, without a gradient."""
        outputs, emitted = torch.empty_like(inputs), torch.empty_like(state[-1])
        carried = [torch.empty_like(value) for value in state[:-1]]
        at = outputs.data_ptr()
        addresses = [value.data_ptr() for value in (*state, *carried)]
        self.run(inputs.data_ptr(), inputs.stride(0), at, *addresses)
        ctypes.memmove(emitted.data_ptr(), at, self.bytes)
        return outputs, (*carried, emitted)


def prepared(cell: Cell, backend: str, shape: torch.Size) -> OneStep | None:
    """What was prepared for calls of `cell` over one step of `shape`, ``[1, ...]``, if it still is the same."""
    found: OneStep | None = programs.known(cell, ("one step", backend, shape))
    return found


def prepare(cell: Cell, backend: str, spec: RunSpecification) -> None:
    """Prepares calls of `cell` like one that went by `spec`, where its kernels allow it."""
    kernels, states = spec.program.kernels, len(spec.program.step.states)
    if spec.order is None and spec.begun == states and spec.program.takes_zeros and not tensors_of(cell):
        run = kernels.one_step(spec.shape)
        if run is not None:
            programs.attach(cell, ("one step", backend, spec.shape), OneStep(spec, run))
