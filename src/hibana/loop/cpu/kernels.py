"""A step's kernels on the CPU: built when first asked for, run over tensors.

Memory is walked in order: a sequence is ``[T, ...]`` whose single steps are contiguous, with any stride
over time; a stride of zero is an input that stays the same and is never written out.
"""

import ctypes
from collections.abc import Sequence
from copy import copy
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hibana.loop.backend import Kernels, Launch
from hibana.loop.cpu.body import LINE
from hibana.loop.cpu.functions import library_function, own_function, sleef_function
from hibana.loop.cpu.node import built
from hibana.loop.cpu.rows import kernel_says
from hibana.loop.cpu.source import ACCURATE, APART, PAGE, Source, backward_source, forward_source
from hibana.loop.cpu.walk import ROOM_APART, Bound, Replay, Walk, has_room, replay, row_bytes, walk
from hibana.loop.graph.ops import CALLS, OPERATIONS, Unsupported
from hibana.loop.graph.plan import Plan, cost_in_bits, gradients, reachable, replayed
from hibana.loop.graph.trace import Step
from hibana.native import assemble
from hibana.native.threads import libtorch

__all__ = ["CpuKernels", "vector_functions"]

CPU = torch.device("cpu")

STREAMED = 32 << 20
"""Bytes from which on a sequence is written past the caches: the next to read it would not find it there."""

REPLAYED = 4 << 20
"""Bytes from which on a sequence is worth a second run forward: shorter ones stay in a core's own caches."""

FAR = 256 << 10
"""Bytes from which on it matters where a tensor lies; a page more is little then."""

SHAPES = 256
"""Shapes of sequences that a step's kernels are kept ready for."""
LAUNCHES = 64
"""As many with a step's own constants."""


class CpuKernels(Kernels):
    """The kernels of one step in one dtype.

    Raises:
        Unsupported: if the step computes a function that can't be had here within 2 ulp.
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
        self.functions = vector_functions(step, dtype)
        self.calls = frozenset(self.functions)
        self.approximate = approximate(step, dtype)
        self._built: dict[object, Bound] = {}
        self._forward = lru_cache(SHAPES)(self._make_forward)
        self._backward = lru_cache(SHAPES)(self._make_backward)
        self._turns = lru_cache(SHAPES)(self._make_turns)
        self._take(step)

    def alike(self, step: Step) -> Self:
        """The kernels of `step`, which is this one's but for its constants: the same code."""
        kernels = copy(self)
        kernels._take(step)
        return kernels

    def _take(self, step: Step) -> None:
        """Takes the constants of `step`."""
        self.step = step
        number = ctypes.c_double if self.dtype == torch.float64 else ctypes.c_float
        self.constants = (number * len(step.constants))(*step.constants)
        self.constants_at = ctypes.addressof(self.constants)
        self._launch = lru_cache(LAUNCHES)(self._make_launch)

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
        apart: bool = True,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is emitted ``[T, ...]``, the last states but that if `ends`, and what `plan` keeps.

        If `apart`, what is emitted may begin later than its memory does: see :func:`beside`.
        """
        shape, dtype = inputs.shape, self.dtype
        outputs = beside(inputs, shape) if apart else torch.empty(shape, dtype=dtype, device=CPU)
        place = outputs.data_ptr()
        ready = self._forward(shape, plan, place % LINE == 0, torch.get_num_threads())
        last = [torch.empty(shape[1:], dtype=dtype, device=CPU) for _ in first[1:]] if ends else []
        kept = [
            torch.empty(*ready.bits, dtype=torch.uint8, device=CPU) if boolean else torch.empty_like(outputs)
            for boolean in ready.booleans
        ]
        ready.walk.run(  # in the order of forward_source
            *(inputs.data_ptr(), inputs.stride(0), place),
            *_addresses(*first, *(last or (None,) * (len(first) - 1)), *kept, *parameters),
            self.constants_at,
        )
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
        apart: bool = True,
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the states begun with, and the sums over time.

        With `constant`, the gradient of the input is summed over time. If `apart`, it may begin later than
        its memory does.
        """
        one, dtype = shape[1:], self.dtype
        if grad_outputs is None:
            grad_outputs = torch.zeros(one, dtype=dtype, device=CPU).expand(shape)
        grad_input, place = None, 0
        if wants_input:
            wanted = one if constant else shape
            grad_input = (
                beside(grad_outputs, wanted) if apart else torch.empty(wanted, dtype=dtype, device=CPU)
            )
            place = grad_input.data_ptr()
        first_grads: list[Tensor | None] = [None] * len(first)
        if wants_first:
            first_grads = [torch.empty(one, dtype=dtype, device=CPU) for _ in first]
        sums = [torch.empty(one, dtype=dtype, device=CPU) for _ in self.step.grad_sums]
        way = (shape, wants_input, constant, place % LINE == 0, torch.get_num_threads())
        read = (0, 0) if inputs is None else (inputs.data_ptr(), inputs.stride(0))
        before = (*read, grad_outputs.data_ptr(), grad_outputs.stride(0), place)
        states = (*first, *last_grads, *first_grads)
        if plan.again is None:
            # in the order of backward_source
            given = _addresses(*states, *kept, *sums, *parameters)
            self._backward(*way).run(*before, *given, self.constants_at)
        else:
            again = (*read, 0, *_addresses(*first), *(0,) * (len(first) - 1))  # as in `forward`
            self._turns(plan.again, *way).run(
                (again, [*_addresses(*parameters), self.constants_at]),
                ((*before, *_addresses(*states)), [*_addresses(*sums, *parameters), self.constants_at]),
                before[2],
            )
        return grad_input, first_grads, sums

    def launch(self, plan: Plan | None, shape: torch.Size, ends: bool) -> Launch | None:
        """What runs sequences of `shape` from rest without Python, and keeps what `plan` says; or None."""
        if built() is None or self.step.parameters:
            return None
        return self._launch(plan, shape, ends, torch.get_num_threads())

    def _make_launch(self, plan: Plan | None, shape: torch.Size, ends: bool, threads: int) -> Launch:
        node, constants = built(), self.constants_at
        forward = self._forward(shape, plan, True, threads)
        backward, turns = None, None
        if plan is not None:
            way = (shape, True, False, True, threads)
            if plan.again is None:
                backward = self._backward(*way).call(constants)
            else:
                backward, turns = self._turns(plan.again, *way).calls(constants)
        reads_input = plan is not None and plan.reads_input
        marks = (None, None) if plan is None else (plan.support_at, plan.spikes_at)
        facts = (  # in the order of node.cpp
            *(len(self.step.states), ends, plan is not None, reads_input, self._streams(*_sizes(shape))),
            *(-1 if place is None else place for place in marks),
            *(FAR, APART, ROOM_APART, PAGE, LINE),
        )
        call = forward.walk.call(constants)
        launch = node.launch(facts, forward.bits, forward.booleans, call, backward, turns)
        return partial(node.run, launch)

    def kept_shapes(self, steps: int, one: Sequence[int]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that a forward keeps."""
        neurons = 1
        for size in one:
            neurons = neurons * size
        bits = ((steps, row_bytes(neurons)), torch.uint8)
        reals = ((steps, *one), self.dtype)
        return [bits if value.boolean else reals for value in self.plan.kept_values]

    def _make_forward(self, shape: torch.Size, plan: Plan | None, aligned: bool, threads: int) -> "_Ready":
        steps, neurons = _sizes(shape)
        bound = self._kernel("forward", plan, True, aligned and self._streams(steps, neurons))
        booleans = tuple(value.boolean for value in plan.kept_values) if plan else ()
        return _Ready(walk(bound, steps, neurons, threads), (steps, row_bytes(neurons)), booleans)

    def _make_backward(
        self, shape: torch.Size, wants_input: bool, constant: bool, aligned: bool, threads: int
    ) -> Walk:
        return walk(self._backward_kernel(shape, wants_input, constant, aligned), *_sizes(shape), threads)

    def _make_turns(
        self, again: Plan, shape: torch.Size, wants_input: bool, constant: bool, aligned: bool, threads: int
    ) -> Replay:
        turns = (
            self._kernel("forward", again, False, False),
            self._backward_kernel(shape, wants_input, constant, aligned),
        )
        return replay(turns, self._kept_bits(again), *_sizes(shape), threads)

    def _backward_kernel(self, shape: torch.Size, wants_input: bool, constant: bool, aligned: bool) -> Bound:
        streamed = wants_input and not constant and aligned and self._streams(*_sizes(shape))
        return self._kernel("backward", wants_input, constant, streamed)

    def _streams(self, steps: int, neurons: int) -> bool:
        """Whether a sequence is too long for a cache, and each step can begin where a line does."""
        step = neurons * self.size
        return steps * step >= STREAMED and step % LINE == 0

    def _kernel(self, direction: str, *variant: Any) -> Bound:
        """A kernel, what its arguments end with, and how wide its rows are at most."""
        key = (direction, variant)
        found = self._built.get(key)
        if found is None:
            made = self._forward_source if direction == "forward" else self._backward_source
            source = made(*variant)
            (kernel,) = assemble(source.text, (direction,))
            called = [
                name.removesuffix("_at") for name in source.arguments if name.removesuffix("_at") in CALLS
            ]
            calls = (self.functions[word] for word in called)
            # a thread that was here first may run its own by now, which must stay
            found = self._built.setdefault(key, (kernel, tuple(calls), source.row))
        return found

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


def beside(read: Tensor, shape: torch.Size) -> Tensor:
    """A new tensor of `shape`, which lies where its stores are not taken for what is loaded from `read`.

    See :data:`hibana.loop.cpu.source.APART`. Memory that is of no matter is taken as it comes.
    """
    count, dtype = shape.numel(), read.dtype
    if count * dtype.itemsize < FAR:
        return torch.empty(shape, dtype=dtype, device=CPU)
    room = torch.empty(count + PAGE // dtype.itemsize, dtype=dtype, device=CPU)
    shift = (read.data_ptr() + APART - room.data_ptr()) & (PAGE - LINE)
    placed = torch.empty(0, dtype=dtype, device=CPU).set_(
        room.untyped_storage(), shift // dtype.itemsize, shape, ()
    )
    return placed.data  # to which nothing was written yet, as others may ask of its version


class _Ready(NamedTuple):
    """A forward kernel made ready for sequences of one shape."""

    walk: Walk
    bits: tuple[int, int]
    """The shape of the bits of a sequence."""
    booleans: tuple[bool, ...]
    """Whether each of what it keeps is bits."""


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sizes(shape: torch.Size) -> tuple[int, int]:
    """Steps, and the neurons of one."""
    return shape[0], shape[1:].numel()


def vector_functions(step: Step, dtype: torch.dtype) -> dict[str, int]:
    """The addresses of the functions that compute what `step` calls.

    They are those by which this torch computes it, if they are found; hibana's own or the C library's for
    what else its forward calls. What only its backward calls may be left out: kernels have the C library.

    Raises:
        Unsupported: if there is none.
    """
    forward = {value.word for value in reachable(step.nexts)} & CALLS
    found = {}
    for word in sorted(forward.union(v.word for v in reachable(gradients(step))) & CALLS):
        address = _vector_function(word, dtype)
        if not address and (word in forward or not kernel_says(word)):
            two = (
                OPERATIONS[word].arity == 2
            )  # Sleef's of one number are believed only where they are torch's
            address = own_function(word, dtype) or (two and sleef_function(word, dtype))
            address = address or library_function(word, dtype)
            if not address:
                raise Unsupported(f"{word} is nothing that hibana computes in {dtype} within 2 ulp")
        if address:
            found[word] = address
    return found


def approximate(step: Step, dtype: torch.dtype) -> tuple[str, ...]:
    """What the forward of `step` calls that does not give this torch's own bits."""
    called = {value.word for value in reachable(step.nexts)} & CALLS
    return tuple(word for word in sorted(called) if not _vector_function(word, dtype))


@cache
def _vector_function(word: str, dtype: torch.dtype) -> int:
    """The address of the function by which this torch computes `word`, or 0 if it can't be found.

    It is believed only if it gives torch's own bits on a sample, and on pieces of it of every length: some of
    torch's give other bits where a tensor ends.
    """
    row = OPERATIONS[word]
    wanted = getattr(torch, word, None)
    if row.arity != 1 or row.own or wanted is None:
        return 0
    sample = _sample(dtype)
    expected = wanted(sample)
    pieces = [slice(first, first + 1 + first % 39) for first in range(0, sample.numel() - 40, 53)]
    alone = [(piece, wanted(sample[piece])) for piece in pieces]
    for address in (_mkl_function(word, dtype), sleef_function(word, dtype), library_function(word, dtype)):
        if not address:
            continue
        found = torch.empty_like(sample)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        prototype(address)(sample.numel(), sample.data_ptr(), found.data_ptr(), ACCURATE)
        if _equal(found, expected) and all(_equal(found[piece], each) for piece, each in alone):
            return address
    return 0


@cache
def _sample(dtype: torch.dtype) -> Tensor:
    """Numbers of every size and sign, dense where functions bend."""
    even = torch.linspace(-20.0, 20.0, 4097, dtype=dtype, device=CPU)
    near = torch.linspace(-1.0, 1.0, 4097, dtype=dtype, device=CPU)
    sizes = torch.logspace(-45, 38, 4097, dtype=torch.float64, device=CPU).to(dtype)
    return torch.cat([even, near, sizes, -sizes])


def _equal(found: Tensor, expected: Tensor) -> bool:
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def _mkl_function(word: str, dtype: torch.dtype) -> int:
    name = ("vmd" if dtype == torch.float64 else "vms") + OPERATIONS[word].mkl
    if not OPERATIONS[word].mkl or not hasattr(libtorch(), name):
        return 0
    return ctypes.cast(getattr(libtorch(), name), ctypes.c_void_p).value or 0
