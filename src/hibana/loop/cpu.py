"""A step's kernels on the CPU: built when first asked for, run over tensors.

Memory is walked in order: a sequence is ``[T, ...]`` whose single steps are contiguous, with any stride
over time; a stride of zero is an input that stays the same and is never written out.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.loop.llvm_replay import replay_source
from hibana.loop.llvm_source import ACCURATE, ROW, Source, backward_source, forward_source
from hibana.loop.llvm_text import LINE
from hibana.loop.plan import Plan, cost_in_bits, reachable, replayed
from hibana.loop.trace import Step
from hibana.loop.words import CALLS, Unsupported
from hibana.native import Kernel, arguments, assemble, run
from hibana.native.threads import libtorch

__all__ = ["CpuKernels"]

STREAMED = 32 << 20
"""Bytes from which on a sequence is written past the caches: the next to read it would not find it there."""

REPLAYED = 4 << 20
"""Bytes from which on a sequence is worth a second run forward: shorter ones stay in a core's own caches."""

ROOM = 256 << 10
"""Bytes that a second run forward keeps at a time, at most: a part of a second-level cache."""

SHORTEST = 512
"""Neurons in a row at least."""

SMALLEST_SHARE = 1 << 15
"""Neuron-steps that are worth a thread of their own."""

_MKL = {"exp": "Exp", "log": "Ln", "log2": "Log2", "tanh": "Tanh", "sin": "Sin", "cos": "Cos"} | {
    "erf": "Erf",
    "erfc": "Erfc",
    "atan": "Atan",
    "sqrt": "Sqrt",
}


_Halves = tuple[Kernel, list[int], list[int]]
"""A kernel, and its arguments before and after those for what is kept."""


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
        return again if _widest(self._room_bits(again) * shape[0]) >= SHORTEST else self.plan

    def _room_bits(self, plan: Plan) -> int:
        """What a second run forward keeps of a neuron and step."""
        assert plan.again is not None
        return sum(cost_in_bits(value, 8 * self.size) for value in plan.again.kept_values)

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
        _walked(kernel, values, steps, neurons)
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
        values = [  # in the order of backward_source
            *(steps, neurons, 0, row_bytes, neurons, *read),
            *(grad_outputs.data_ptr(), grad_outputs.stride(0)),
            *_addresses(grad_input, *first, *last_grads, *first_grads),
        ]
        rest = [*_addresses(*sums), *numbers, *calls]
        if plan.again is None:
            _walked(kernel, [*values, *_addresses(*kept), *rest], steps, neurons)
        elif neurons:
            forward, calls = self._kernel("forward", plan.again, False, False)
            again = [
                steps,
                neurons,
                0,
                row_bytes,
                neurons,
                *read,
                0,
                *_addresses(*first),
                *[0] * len(first[1:]),
            ]
            self._replay(plan, (forward, again, [*numbers, *calls]), (kernel, values, rest), steps, neurons)
        return grad_input, first_grads, sums

    def _replay(self, plan: Plan, forward: _Halves, backward: _Halves, steps: int, neurons: int) -> None:
        """Runs `forward` and `backward` by turns; each has its arguments before and after what is kept."""
        assert plan.again is not None
        threads = torch.get_num_threads()
        rows, width, _ = _walk(steps, neurons, threads, _widest(self._room_bits(plan) * steps))
        bits = [cost_in_bits(value, 8 * self.size) for value in plan.again.kept_values]
        ends = list(accumulate((-(-steps * width * b // (8 * LINE)) * LINE for b in bits), initial=0))
        pieces = min(rows, threads)
        room = torch.empty(pieces * ends[-1], dtype=torch.uint8)
        given = []
        for _, before, after in (forward, backward):
            before[WIDTH : WIDTH + 3] = width, width // 8, width
            given.append(arguments([*before, *(0 for _ in bits), *after]))
        tables = [arguments(ends[:-1]), arguments(bits)]
        values = [  # in the order of llvm_replay.ARGUMENTS
            *(forward[0].address, backward[0].address, *map(_address_of, given), *map(len, given)),
            *(len(forward[1]), len(backward[1]), len(bits), *map(_address_of, tables)),
            *(room.data_ptr(), ends[-1], width, rows, -(-rows // pieces)),
        ]
        run(_replay_kernel().address, pieces, arguments(values))

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


ROW_BEGINS = 128
"""Neurons that could be done in the time in which a row's memory begins to arrive."""

WIDTH = 2
"""Where a kernel's arguments say how wide a row is."""


def _walked(kernel: Kernel, values: list[int], steps: int, neurons: int) -> None:
    """Runs `kernel` over all rows."""
    if neurons:
        count, values[WIDTH], grain = _walk(steps, neurons, torch.get_num_threads())
        run(kernel.address, count, arguments(values), grain)


def _widest(bits: int) -> int:
    """How wide a row is at most, of which `bits` of each neuron are to lie in a room."""
    return min(ROW, 8 * ROOM // bits // 64 * 64)


@cache
def _replay_kernel() -> Kernel:
    (kernel,) = assemble(replay_source(), ("replay",))
    return kernel


def _address_of(given: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(given), ctypes.c_void_p).value or 0


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


@lru_cache(maxsize=4096)
def _sizes(shape: torch.Size) -> tuple[int, torch.Size, int, int]:
    """Steps, the shape of one, its neurons, and the bytes of their bits."""
    neurons = shape[1:].numel()
    return shape[0], shape[1:], neurons, _row_bytes(neurons)


def _row_bytes(neurons: int) -> int:
    return (neurons + 7) // 8


@lru_cache(maxsize=4096)
def _walk(steps: int, neurons: int, threads: int, longest: int = ROW) -> tuple[int, int, int]:
    """How many rows, how wide, and how many are not worth a thread: as even a split as can be had.

    A row is counted :data:`ROW_BEGINS` neurons longer than it is.
    """
    widths = range(SHORTEST, longest + 1, 64)
    width = min(widths, key=lambda w: (-(-neurons // (w * threads)) * (w + ROW_BEGINS), -w))
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width))


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
