"""A step's kernels on the CPU: built when first asked for, run over tensors.

Memory is walked in order: a sequence is ``[T, ...]`` whose single steps are contiguous, with any stride
over time; a stride of zero is an input that stays the same and is never written out.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.loop.cpu_walk import READ, has_room, replay, walk
from hibana.loop.llvm_source import ACCURATE, Source, backward_source, forward_source
from hibana.loop.llvm_text import LINE
from hibana.loop.plan import Plan, cost_in_bits, reachable, replayed
from hibana.loop.trace import Step
from hibana.loop.words import CALLS, Unsupported
from hibana.native import Kernel, assemble
from hibana.native.threads import libtorch

__all__ = ["CpuKernels"]

STREAMED = 32 << 20
"""Bytes from which on a sequence is written past the caches: the next to read it would not find it there."""

REPLAYED = 4 << 20
"""Bytes from which on a sequence is worth a second run forward: shorter ones stay in a core's own caches."""

_MKL = {"exp": "Exp", "log": "Ln", "log2": "Log2", "tanh": "Tanh", "sin": "Sin", "cos": "Cos"} | {
    "erf": "Erf",
    "erfc": "Erfc",
    "atan": "Atan",
    "sqrt": "Sqrt",
}


class CpuKernels:
    """The kernels of one step in one dtype.

    Raises:
        Unsupported: if the step computes a function that can't be had here to PyTorch's last bit.
    """

    about: ClassVar = "cpu: one native kernel forward and one back, on torch's threads"
    takes_half: ClassVar = False

    @staticmethod
    def device() -> str:
        """The kind of device whose PyTorch the numbers equal."""
        return "cpu"

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.step = step
        self.plan = plan
        self.replayed = replayed(step, plan)
        self.dtype = dtype
        self.real = str(dtype).removeprefix("torch.")
        self.size = dtype.itemsize
        roots = [*step.nexts, *step.grad_sums, *(g for g in (step.grad_input, *step.grad_states) if g)]
        said = {value.word for value in reachable(roots)} & CALLS
        self.calls = frozenset(word for word in said if _vector_function(word, dtype))
        for value in reachable(step.nexts):
            if value.word == "sigmoid" or value.word in CALLS - self.calls:
                raise Unsupported(f"{value.word} can't be had here to the last bit of torch.{value.word}")
        number = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        self.constants = (number * len(step.constants))(*step.constants)
        self.constants_at = ctypes.addressof(self.constants)
        self._built: dict[object, tuple[Kernel, Source, list[int]]] = {}

    def source(self, direction: str, *, keep: bool = True) -> str:
        """The source of the ``"forward"`` or ``"backward"`` kernel."""
        return (
            self._forward_source(self.plan if keep else None)
            if direction == "forward"
            else self._backward_source(True, False)
        ).text

    def plan_for(self, shape: torch.Size) -> Plan:
        """The plan for sequences of `shape`: long ones are run again for what would be numbers to keep."""
        again = self.replayed
        if again is None or shape.numel() * self.size < REPLAYED:
            return self.plan
        return again if has_room(self._kept_bits(self.plan), shape[0]) else self.plan

    def _kept_bits(self, plan: Plan) -> list[int]:
        """What each sequence that `plan` keeps takes of a neuron and step."""
        return [cost_in_bits(value, 8 * self.size) for value in plan.kept_values]

    def forward(
        self,
        inputs: Tensor,
        first: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        plan: Plan | None,
        ends: bool = True,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is emitted ``[T, ...]``, the last states but that if `ends`, and what `plan` keeps."""
        shape = inputs.shape
        steps, one, neurons, row_bytes = _sizes(shape)
        outputs = torch.empty_like(inputs) if inputs.is_contiguous() else torch.empty(shape, dtype=self.dtype)
        last = [torch.empty(one, dtype=self.dtype) for _ in first[1:]] if ends else []
        kept = [
            torch.empty(steps, row_bytes, dtype=torch.uint8) if value.boolean else torch.empty_like(outputs)
            for value in (plan.kept_values if plan else ())
        ]
        kernel, calls = self._kernel("forward", plan, True, self._streams(outputs, steps, neurons))
        values = [  # in the order of forward_source
            *(steps, neurons, 0, row_bytes, neurons),
            *(inputs.data_ptr(), inputs.stride(0)),
            *_addresses(outputs, *first, *(last or (None,) * (len(first) - 1)), *kept),
            *(self.constants_at, *_addresses(*parameters), *calls),
        ]
        walk(kernel, values, steps, neurons)
        return outputs, last, kept

    def backward(
        self,
        plan: Plan,
        shape: torch.Size,
        inputs: Tensor | None,
        first: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad_outputs: Tensor | None,
        last_grads: Sequence[Tensor | None],
        wants_input: bool,
        constant: bool,
        wants_first: bool,
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the states begun with, and the sums over time.

        With `constant`, the gradient of the input is summed over time.
        """
        steps, one, neurons, row_bytes = _sizes(shape)
        if grad_outputs is None:
            grad_outputs = torch.zeros(one, dtype=self.dtype).expand(shape)
        grad_input = None
        if wants_input:
            plain = grad_outputs.is_contiguous() and not constant
            grad_input = (
                torch.empty_like(grad_outputs)
                if plain
                else torch.empty(one if constant else shape, dtype=self.dtype)
            )
        first_grads = [torch.empty(one, dtype=self.dtype) if wants_first else None for _ in first]
        sums = [torch.empty(one, dtype=self.dtype) for _ in self.step.grad_sums]
        streamed = grad_input is not None and not constant and self._streams(grad_input, steps, neurons)
        kernel, calls = self._kernel("backward", wants_input, constant, streamed)
        read = (0, 0) if inputs is None else (inputs.data_ptr(), inputs.stride(0))
        numbers = (self.constants_at, *_addresses(*parameters))
        begun = _addresses(*first)
        values = [  # in the order of backward_source
            *(steps, neurons, 0, row_bytes, neurons, *read),
            *(grad_outputs.data_ptr(), grad_outputs.stride(0), *_addresses(grad_input)),
            *(*begun, *_addresses(*last_grads, *first_grads)),
        ]
        rest = [*_addresses(*sums), *numbers, *calls]
        if plan.again is None:
            walk(kernel, [*values, *_addresses(*kept), *rest], steps, neurons)
        else:
            forward, calls = self._kernel("forward", plan.again, False, False)
            again = [*values[:READ], *read, 0, *begun, *(0 for _ in first[1:])]  # as in `forward`
            turns = ((forward, again, [*numbers, *calls]), (kernel, values, rest))
            replay(turns, self._kept_bits(plan.again), steps, neurons)
        return grad_input, first_grads, sums

    def kept_shapes(self, steps: int, one: Sequence[int]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that a forward keeps."""
        neurons = 1
        for size in one:
            neurons = neurons * size
        bits = ((steps, _row_bytes(neurons)), torch.uint8)
        reals = ((steps, *one), self.dtype)
        return [bits if value.boolean else reals for value in self.plan.kept_values]

    def _streams(self, sequence: Tensor, steps: int, neurons: int) -> bool:
        """Whether `sequence`, about to be written, is too long for a cache, each step on lines of its own."""
        step = neurons * self.size
        return steps * step >= STREAMED and step % LINE == 0 and sequence.data_ptr() % LINE == 0

    def _kernel(self, direction: str, *variant: Any) -> tuple[Kernel, list[int]]:
        key = (direction, variant)
        if key not in self._built:
            made = self._forward_source if direction == "forward" else self._backward_source
            source = made(*variant)
            (kernel,) = assemble(source.text, (direction,))
            called = [
                name.removesuffix("_at") for name in source.arguments if name.removesuffix("_at") in CALLS
            ]
            self._built[key] = (kernel, source, [_vector_function(word, self.dtype) for word in called])
        kernel, _, calls = self._built[key]
        return kernel, calls

    def _forward_source(self, plan: Plan | None, emits: bool = True, streamed: bool = False) -> Source:
        return forward_source(self.step, plan, self.real, self.calls, emits=emits, streaming=streamed)

    def _backward_source(self, wants_input: bool, constant: bool, streamed: bool = False) -> Source:
        return backward_source(
            self.step,
            self.plan,
            self.real,
            self.calls,
            wants_input=wants_input,
            constant_input=constant,
            streaming=streamed,
        )


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


@lru_cache(maxsize=4096)
def _sizes(shape: torch.Size) -> tuple[int, torch.Size, int, int]:
    """Steps, the shape of one, its neurons, and the bytes of their bits."""
    neurons = shape[1:].numel()
    return shape[0], shape[1:], neurons, _row_bytes(neurons)


def _row_bytes(neurons: int) -> int:
    return (neurons + 7) // 8


@cache
def _vector_function(word: str, dtype: torch.dtype) -> int:
    """The address of the function by which this torch computes `word`, or 0 if it can't be found.

    It is believed only if it gives torch's own bits on a sample.
    """
    name = ("vmd" if dtype == torch.float64 else "vms") + _MKL[word]
    if not hasattr(libtorch(), name):
        return 0
    function = getattr(libtorch(), name)
    function.argtypes = (ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function.restype = None
    sample = torch.linspace(-20.0, 20.0, 4097, dtype=dtype)
    found = torch.empty_like(sample)
    function(sample.numel(), sample.data_ptr(), found.data_ptr(), ACCURATE)
    wanted = getattr(torch, word)(sample)
    same = torch.equal(found.nan_to_num(), wanted.nan_to_num())
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if same else 0
