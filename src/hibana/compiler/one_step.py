"""One step of a cell from a state, prepared once: what :func:`hibana.run` repeats at each of its calls."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.autograd import RunSpecification
from hibana.compiler.backend import OneStepKernels
from hibana.compiler.tensors import tensors_of

_threads, _like = torch.get_num_threads, torch.empty_like


class OneStep:
    """A cell without tensors over one step, ``[1, ...]``, from a state, on the CPU."""

    __slots__ = (
        *("blank", "bytes", "count", "dtype", "first", "kernels", "one", "program", "reads_input", "threads"),
        "zeros",
    )

    def __init__(self, spec: RunSpecification, kernels: OneStepKernels) -> None:
        self.program = program = spec.program  # which keeps what the kernels read
        self.kernels, self.one = kernels, spec.shape[1:]
        self.first, self.reads_input = spec.plan.first, spec.plan.reads_input
        """Initial states that the backward reads, and whether it reads the input."""
        self.dtype, self.count, self.threads = program.kernels.dtype, len(program.step.states), _threads()
        self.bytes = self.one.numel() * self.dtype.itemsize
        self.zeros = torch.zeros(spec.shape, dtype=self.dtype, device="cpu")
        self.blank = self.zeros[0]

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

    def __call__(self, inputs: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs and the next state, without a gradient."""
        outputs, *ended = _like(inputs), *[_like(value) for value in state]
        at = outputs.data_ptr()
        addresses = [value.data_ptr() for value in (*state, *ended[:-1])]
        self.kernels.forward(inputs.data_ptr(), 0, at, *addresses)
        ctypes.memmove(ended[-1].data_ptr(), at, self.bytes)
        return outputs, tuple(ended)

    def keeping(self, inputs: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The outputs, the next state, and what the backward reads of the step."""
        outputs, *ended = _like(inputs), *[_like(value) for value in state]
        residuals = [_like(value) for value in self.kernels.residuals]
        at = outputs.data_ptr()
        addresses = [value.data_ptr() for value in (*state, *ended[:-1], *residuals)]
        self.kernels.keeping(inputs.data_ptr(), 0, at, *addresses)
        ctypes.memmove(ended[-1].data_ptr(), at, self.bytes)
        return outputs, ended, residuals

    def backward(
        self,
        inputs: Tensor | None,
        first: Sequence[Tensor],
        residuals: Sequence[Tensor],
        of_outputs: Tensor | None,
        of_states: Sequence[Tensor | None],
        wants_first: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the input and of the states before; of these none, if they are not wanted.

        None where autograd has none, of which zeros here would make NaN beside an infinite derivative.

        Args:
            inputs: if it `reads_input`.
            first: the initial states that it reads, in the order of `first`.
            residuals: of the step.
            of_outputs: gradient of the outputs, contiguous.
            of_states: gradients of the states after the step but the emitted, contiguous.
            wants_first: whether those of the states before are wanted.
        """
        of_input = _like(self.zeros)
        before = [0] * self.count
        for place, value in zip(self.first, first, strict=True):
            before[place] = value.data_ptr()
        of_first: list[Tensor | None] = [_like(self.blank) for _ in before] if wants_first else []
        self.kernels.backward(
            *(0 if inputs is None else inputs.data_ptr(), 0),
            *((self.zeros if of_outputs is None else of_outputs).data_ptr(), 0),
            *(of_input.data_ptr(), self.kernels.no_scalar_gradient_at, *before),
            *[0 if grad is None else grad.data_ptr() for grad in of_states],
            *([grad.data_ptr() for grad in of_first if grad is not None] or [0] * self.count),
            *[value.data_ptr() for value in residuals],
        )
        given = frozenset(i for i, grad in enumerate(of_states) if grad is not None)
        reached = self.program.missing_gradients.reached(given, of_outputs is not None, 1)
        return (
            of_input if reached.input else None,
            [grad if i in reached.first else None for i, grad in enumerate(of_first)],
        )


def prepared(cell: Cell, backend: str, shape: torch.Size) -> OneStep | None:
    """What was prepared for calls of `cell` over a step of `shape`, ``[1, ...]``, if it still is the same."""
    found: OneStep | None = programs.known(cell, ("one step", backend, shape))
    return found


def prepare(cell: Cell, backend: str, spec: RunSpecification) -> None:
    """Prepares calls of `cell` like one that went by `spec`, where its kernels allow it."""
    program = spec.program
    whole = spec.order is None and spec.begun == len(program.step.states) and program.takes_zeros
    if whole and not tensors_of(cell):
        kernels = program.kernels.one_step(spec.shape, spec.plan)
        if kernels is not None:
            programs.attach(cell, ("one step", backend, spec.shape), OneStep(spec, kernels))
