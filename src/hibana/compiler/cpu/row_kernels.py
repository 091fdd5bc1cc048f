"""A step's CPU kernels: compiled on first use, run over tensors.

A sequence is ``[T, ...]`` whose single steps are contiguous, with any stride over time; stride zero is an
input that is the same at each step.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments, ForwardArguments, Prepared
from hibana.compiler.cpu.base import NativeKernels
from hibana.compiler.cpu.kernel_writer import BACKWARD, FORWARD, Source
from hibana.compiler.cpu.launch import Bound, Walk, unaliased, walk
from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.cpu.source import backward_source, forward_source
from hibana.compiler.graph.plan import Plan, spikes_plan
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import assemble

CPU = torch.device("cpu")

NONTEMPORAL_FROM = 8 << 20
"""Bytes from which on a sequence is written by non-temporal stores: the last-level cache would keep little of
it until it is read."""

PREPARED_UP_TO = 64 << 10
"""Bytes of a sequence up to which calls are prepared; a longer one takes longer than what that saves."""

_Argument = TypeVar("_Argument", int, str)

SHAPES = 256
"""Maximum shapes of sequences that the kernels of all steps of one structure stay bound to."""


class CpuKernels(NativeKernels):
    """The kernels of one step in one dtype, over rows of neurons; they raise what their base raises."""

    about: ClassVar = "cpu: one native kernel forward and one back, on torch's threads"

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        super().__init__(step, plan, dtype)
        self.emitting = spikes_plan(step)
        self._built: dict[object, Bound] = {}
        self._forward = lru_cache(SHAPES)(self._make_forward)
        self._backward = lru_cache(SHAPES)(self._make_backward)

    def source(self, direction: str, *, keep: bool = True) -> str:
        if direction == "forward":
            return self._forward_source(self.plan if keep else None).text
        return self._backward_source(True).text

    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        inputs, first, parameters, plan, ends, may_offset, seed = given
        shape, dtype = inputs.shape, self.dtype
        outputs = unaliased(inputs, shape, may_offset)
        place = outputs.data_ptr()
        ready = self._forward(shape, plan, place % LINE == 0, torch.get_num_threads())
        last = []
        if ends:  # like the states begun with, where there are: sizes that come from Python take longer
            last = [
                torch.empty(shape[1:], dtype=dtype, device=CPU) if s is None else torch.empty_like(s)
                for s in first[1:]
            ]
        residuals = self._residuals(plan, shape)
        ready.run(  # as self._forward_names has them
            *(self.constants_at, inputs.data_ptr(), inputs.stride(0), place),
            *_addresses(*parameters, *first, *(last or (None,) * (len(first) - 1)), *residuals),
            *self._drawn(seed),
        )
        return outputs, last, residuals

    def _residuals(self, plan: Plan | None, shape: torch.Size) -> list[Tensor]:
        """New tensors for what `plan` keeps of a sequence of `shape`."""
        if plan is None:
            return []
        kept = self.residual_shapes(shape[0], shape[1:], plan)
        return [torch.empty(size, dtype=dtype, device=CPU) for size, dtype in kept]

    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        shape, inputs, first, parameters, residuals = given[:5]
        grad_outputs, wants_input = given.grad_outputs, given.wants_input
        one, dtype = shape[1:], self.dtype
        if grad_outputs is None:
            grad_outputs = torch.zeros(one, dtype=dtype, device=CPU).expand(shape)
        grad_input, place = None, 0
        if wants_input:
            grad_input = unaliased(grad_outputs, shape, given.may_offset)
            place = grad_input.data_ptr()
        first_grads: list[Tensor | None] = [None] * len(first)
        if given.wants_first:
            first_grads = [torch.empty(one, dtype=dtype, device=CPU) for _ in first]
        back = self._backward(shape, wants_input, place % LINE == 0, torch.get_num_threads())
        sums = [torch.empty(one, dtype=dtype, device=CPU) for _ in self.step.grad_sums]
        read = (0, 0) if inputs is None else (inputs.data_ptr(), inputs.stride(0))
        values = [  # as self._backward_names has them
            *(self.constants_at, *read, grad_outputs.data_ptr(), grad_outputs.stride(0), place),
            *_addresses(*parameters, *first, *given.last_grads, *first_grads),
            *_addresses(*sums),
            *self._drawn(given.seed),
            *_addresses(*residuals),
        ]
        back.run(*values)
        return grad_input, first_grads, sums

    def prepare(self, plan: Plan, shape: torch.Size, ends: bool) -> Prepared | None:
        step, threads = self.step, torch.get_num_threads()
        small = shape.numel() * self.size <= PREPARED_UP_TO
        if step.parameters or step.draws or not small:
            return None
        neurons, states, empty_like = shape[1:].numel(), len(step.states), torch.empty_like
        forward = self._forward(shape, plan, False, threads)
        backward = self._backward(shape, True, False, threads)
        last = [torch.empty(shape[1:], dtype=self.dtype, device=CPU)] * (states - 1 if ends else 0)
        templates, ended = [*last, *self._residuals(plan, shape)], len(last)
        go, pack, go_back, pack_back = forward.work.run, forward.pack, backward.work.run, backward.pack
        constants = self.constants_at
        none = (0,) * (2 * states - 1 - ended)  # the initial states, and last states that are not wanted
        none_back = (0,) * (3 * states - 1)  # the initial states, and gradients of initial and last states
        unread = [] if plan.reads_input else [0]

        def run(inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            outputs, new = empty_like(inputs), [empty_like(template) for template in templates]
            at = [tensor.data_ptr() for tensor in new]
            # as self._forward_names has them
            go(pack((constants, inputs.data_ptr(), neurons, outputs.data_ptr(), *none, *at)))
            return outputs, new[:ended], new[ended:]

        def run_back(saved: Sequence[Tensor], grad_outputs: Tensor) -> Tensor:
            grad_input = empty_like(grad_outputs)
            read, *at = [*unread, *[tensor.data_ptr() for tensor in saved]]
            of_outputs, of_input = grad_outputs.data_ptr(), grad_input.data_ptr()
            # as self._backward_names has them, and the residuals
            go_back(pack_back((constants, read, neurons, of_outputs, neurons, of_input, *none_back, *at)))
            return grad_input

        return Prepared(run, run_back)

    def _forward_names(self, plan: Plan | None) -> list[str]:
        """The arguments of a forward that keeps the residuals of `plan`, in the order of their values."""
        *carried, _ = states = self.step.states
        return [
            *("constants", *FORWARD),
            *(f"p{i}_at" for i in range(self.step.parameters)),
            *(f"{name}_first" for name in states),
            *(f"{name}_last" for name in carried),
            *(plan.names if plan else ()),
            *self._drawn("seed"),
        ]

    def _backward_names(self) -> list[str]:
        """The arguments of a backward, in the order of their values."""
        *carried, _ = states = self.step.states
        return [
            *("constants", *BACKWARD),
            *(f"p{i}_at" for i in range(self.step.parameters)),
            *(f"{name}_first" for name in states),
            *(f"{name}_last_grad" for name in carried),
            *(f"{name}_first_grad" for name in states),
            *(f"sum{i}_all" for i in range(len(self.step.grad_sums))),
            *self._drawn("seed"),
            *self.plan.names,
        ]

    def _drawn(self, seed: _Argument) -> tuple[_Argument, ...]:
        """The seed, if a step draws random numbers."""
        return (seed,) if self.step.draws else ()

    def _make_forward(self, shape: torch.Size, plan: Plan | None, aligned: bool, threads: int) -> Walk:
        steps, neurons = _sizes(shape)
        bound = self._kernel("forward", plan, aligned and self._nontemporal(steps, neurons))
        return walk(bound, self._forward_names(plan), steps, neurons, threads)

    def _make_backward(self, shape: torch.Size, wants_input: bool, aligned: bool, threads: int) -> Walk:
        steps, neurons = _sizes(shape)
        nontemporal = wants_input and aligned and self._nontemporal(steps, neurons)
        bound = self._kernel("backward", wants_input, nontemporal)
        return walk(bound, self._backward_names(), steps, neurons, threads)

    def _nontemporal(self, steps: int, neurons: int) -> bool:
        """Whether a sequence is too long for the cache, and its steps are aligned to cache lines."""
        step = neurons * self.size
        return steps * step >= NONTEMPORAL_FROM and step % LINE == 0

    def _kernel(self, direction: str, *variant: Any) -> Bound:
        key = (direction, variant)
        found = self._built.get(key)
        if found is None:
            made = self._forward_source if direction == "forward" else self._backward_source
            source = made(*variant)
            (kernel,) = assemble(source.text, (direction,))
            calls = {name: self.functions[op] for name, op in source.calls.items()}
            # a thread that was here first may run its own by now, which must stay
            found = self._built.setdefault(key, Bound(kernel, source.arguments, calls, source.row))
        return found

    def _forward_source(self, plan: Plan | None, *options: bool) -> Source:
        return forward_source(self.step, plan, self.real, self.calls, *options)

    def _backward_source(self, *options: bool) -> Source:
        return backward_source(self.step, self.plan, self.real, self.calls, *options)


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sizes(shape: torch.Size) -> tuple[int, int]:
    """The number of steps of a sequence of this `shape`, ``[T, ...]``, and of neurons in one step."""
    return shape[0], shape[1:].numel()
