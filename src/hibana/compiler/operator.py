"""A compiled run as an operator of `torch.library`: what ``torch.compile`` and ``torch.export`` see.

A graph holds tensors, numbers and text, not cells, and may outlive its process. So the operator takes the
serialised step (:mod:`hibana.compiler.graph.serial`). Eager calls go straight to the kernels: this module,
whose registration loads much of torch, is imported only by a call that is being traced.
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.backend import BackwardArguments, ForwardArguments, kernels_of, refusal
from hibana.compiler.checks import warn_slow
from hibana.compiler.compiling import Program, program_of
from hibana.compiler.draws import new_seed
from hibana.compiler.graph import serial
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.guards import guard, settings
from hibana.compiler.memory_layout import steps_contiguous
from hibana.compiler.programs import program
from hibana.compiler.tensors import tensors_of

Tensors = Sequence[Tensor]
_Run = Callable[[Tensor, tuple[Tensor, ...] | None], tuple[Tensor, list[Tensor]]]


def executable(
    cell: Cell, inputs: Tensor, dtype: torch.dtype, backend: str, auto: bool
) -> tuple[_Run | None, str]:
    """What runs `cell` over sequences of `dtype` in a graph that is being traced, or None and why."""
    dynamo = torch.compiler.is_dynamo_compiling()
    text, reason = _written(cell, backend, inputs.device.type, dtype, inputs.ndim - 1, dynamo, auto)
    if reason:
        return None, str(reason)
    if dynamo:
        guard(cell, inputs[0].to(dtype))
    return partial(_unroll, cell, text, backend), ""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch leaves it so
def _written(
    cell: Cell,
    backend: str,
    device: str,
    dtype: torch.dtype,
    ndim: int,
    dynamo: bool,
    auto: bool,
) -> tuple[str, str]:
    """The step of `cell`, written down for steps of `ndim` dimensions of any size; or why it can't be.

    If `dynamo` makes the graph, it must see when a setting of the cell changes. If hibana chose the backend
    (`auto`), warns when only the reference loop can run the cell.
    """
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():  # what asks has loaded it
        return "", "ONNX has no operators of hibana's"
    reason = refusal(backend, device)
    try:
        made = None if reason else program(cell, backend, _any_size(cell, ndim), dtype)
        if dynamo:
            settings(cell)
        if made is not None and made.step.any_size:
            return serial.write(made.step, made.plan, dtype), ""
        reason = reason or "the step is another one for another size, and a graph may be of any"
    except Unsupported as refused:
        reason = str(refused)
    if auto and device != "meta":
        warn_slow(cell, reason)
    return "", reason


def _any_size(cell: Cell, ndim: int) -> torch.Size:
    """Some shape of `ndim` dimensions that the tensors of `cell` broadcast to."""
    sizes = [2] * ndim
    for tensor in tensors_of(cell).values():
        for dimension, size in zip(range(ndim - 1, -1, -1), reversed(tensor.shape), strict=False):
            sizes[dimension] = max(sizes[dimension], size)
    return torch.Size(sizes)


def _unroll(
    cell: Cell, text: str, backend: str, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, list[Tensor]]:
    """`cell` over `inputs` through the operator; as :func:`hibana.compiler.autograd.run`."""
    first = [] if state is None else list(state)
    cell_tensors = list(tensors_of(cell).values())
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, *first, *cell_tensors))
    number = _number(text, backend)
    seed = torch.ops.hibana.seed(number) if number else None
    outputs, *rest = torch.ops.hibana.unroll(inputs, first, cell_tensors, text, backend, keep, seed)
    return outputs, rest[: len(cell._hibana.states) - 1]


_NUMBERS = count(1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch leaves it so
def _number(text: str, backend: str) -> int:
    """A number that no other call in a graph has, if the step in `text` draws random numbers; else 0."""
    return next(_NUMBERS) if _read(text, backend)[0].step.draws else 0


@torch.library.custom_op("hibana::seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _seed(number: int) -> Tensor:
    """A new seed, an int64; calls differ in their `number`, or a compiler may take two for one."""
    return torch.tensor(new_seed(), dtype=torch.int64, device="cpu")


@_seed.register_fake
def _(number: int) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


@lru_cache(maxsize=1024)
def _read(text: str, backend: str) -> tuple[Program, torch.dtype]:
    step, plan, dtype = serial.read(text)
    kernels = kernels_of(backend, bool(step.matrices))(step, plan, dtype)
    return program_of(step, kernels), dtype


def _program(text: str, backend: str, inputs: Tensor, real: bool = False) -> Program:
    """The program of the step in `text` for `inputs`, on whose device it is to run if they are `real`.

    Raises:
        RuntimeError: if it was written for another dtype or device.
    """
    made, dtype = _read(text, backend)
    if inputs.dtype != dtype:
        raise RuntimeError(
            f"the step was written down for {dtype}, got inputs of {inputs.dtype}: export it again"
        )
    if real and (reason := refusal(backend, inputs.device.type)):
        raise RuntimeError(
            f"the step was written down for backend {backend!r}, and {reason}: export it again"
        )
    return made


def _begun(made: Program, first: Tensors) -> list[Tensor | None]:
    return [t.contiguous() for t in first] if first else [None for _ in made.step.states]


def _stepwise(tensor: Tensor) -> Tensor:
    return tensor if steps_contiguous(tensor) else tensor.contiguous()


@torch.library.custom_op("hibana::unroll", mutates_args=())
def _forward(
    inputs: Tensor,
    first: Tensors,
    cell_tensors: Tensors,
    step: str,
    backend: str,
    keep: bool,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """The outputs, the last states but the emitted, and with `keep` the residuals."""
    made = _program(step, backend, inputs, real=True)
    plan, parameters = made.plan if keep else None, made.parameters(cell_tensors, inputs)
    # a graph expects of every tensor that it begins where its memory does
    given = ForwardArguments(
        _stepwise(inputs),
        _begun(made, first),
        parameters,
        plan,
        ends=True,
        may_offset=False,
        seed=0 if seed is None else int(seed),
    )
    outputs, last, residuals = made.kernels.forward(given)
    return [outputs, *last, *residuals]


@_forward.register_fake
def _(
    inputs: Tensor, first: Any, cell_tensors: Any, step: str, backend: str, keep: bool, seed: Any = None
) -> list[Tensor]:
    made = _program(step, backend, inputs)
    steps, *one = inputs.shape
    residuals = made.kernels.residual_shapes(steps, one) if keep else []
    last = [inputs.new_empty(one) for _ in made.step.states[1:]]
    return [inputs.new_empty((steps, *one)), *last, *(inputs.new_empty(s, dtype=d) for s, d in residuals)]


@torch.library.custom_op("hibana::unroll_backward", mutates_args=())
def _backward(
    inputs: Tensor,
    first: Tensors,
    cell_tensors: Tensors,
    residuals: Tensors,
    grad_outputs: Tensor,
    last_grads: Tensors,
    step: str,
    backend: str,
    learned: Sequence[bool],
    seed: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of inputs and initial states, and of the cell's tensors that are `learned`."""
    made = _program(step, backend, inputs, real=True)
    given = BackwardArguments(
        inputs.shape,
        _stepwise(inputs),
        _begun(made, first),
        made.parameters(cell_tensors, inputs),
        residuals,
        _stepwise(grad_outputs),
        [g.contiguous() for g in last_grads],
        wants_input=True,
        wants_first=True,
        may_offset=False,
        seed=0 if seed is None else int(seed),
    )
    grad_input, first_grads, sums = made.kernels.backward(given)
    assert grad_input is not None
    grads = made.step.epilogue(*cell_tensors, *sums) if any(learned) else [None] * len(cell_tensors)
    to_cell_tensors = [
        g.sum_to_size(t.shape) if g is not None else torch.zeros_like(t)
        for g, t, wanted in zip(grads, cell_tensors, learned, strict=True)
        if wanted
    ]
    return [grad_input, *(g for g in first_grads if g is not None), *to_cell_tensors]


@_backward.register_fake
def _(inputs: Tensor, first: Any, cell_tensors: Tensors, *given: Any) -> list[Tensor]:
    step, backend, learned, *_ = given[3:]
    to_first = [inputs.new_empty(inputs.shape[1:]) for _ in _program(step, backend, inputs).step.states]
    to_cell_tensors = [torch.empty_like(t) for t, wanted in zip(cell_tensors, learned, strict=True) if wanted]
    return [inputs.new_empty(inputs.shape), *to_first, *to_cell_tensors]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    sequence, first, cell_tensors, ctx.step, ctx.backend, keep, seed = inputs
    if not keep:
        raise RuntimeError(
            "hibana::unroll was asked for a gradient after it was told to keep nothing for one"
        )
    made = _program(ctx.step, ctx.backend, sequence)
    ctx.states, ctx.begun, ctx.reads_input = len(made.step.states), len(first), made.plan.reads_input
    ctx.shape, ctx.learned = sequence.shape, [t.requires_grad for t in cell_tensors]
    read = [sequence] if ctx.reads_input else []
    ctx.draws = seed is not None
    ctx.save_for_backward(*read, *first, *cell_tensors, *output[ctx.states :], *([seed] * ctx.draws))


def _gradient(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    """The gradients of the arguments of ``hibana::unroll``, by ``hibana::unroll_backward``."""
    saved, begun = list(ctx.saved_tensors), ctx.begun
    seed = saved.pop() if ctx.draws else None
    like = next(g for g in grads if g is not None)
    inputs = saved.pop(0) if ctx.reads_input else like.new_empty(()).expand(ctx.shape)
    end = begun + len(ctx.learned)
    outputs, *last = grads[: ctx.states]
    outputs = inputs.new_zeros(()).expand(ctx.shape) if outputs is None else outputs
    last = [inputs.new_zeros(ctx.shape[1:]) if g is None else g for g in last]
    arguments = saved[:begun], saved[begun:end], saved[end:], outputs, last
    grad_input, *rest = torch.ops.hibana.unroll_backward(
        inputs, *arguments, ctx.step, ctx.backend, ctx.learned, seed
    )
    to_learned = iter(rest[ctx.states :])
    to_cell_tensors = [next(to_learned) if wanted else None for wanted in ctx.learned]
    # torch has no gradient for an argument that is its default, as no seed is
    return grad_input, rest[:begun], to_cell_tensors, None, None, None, *[None] * ctx.draws


_forward.register_autograd(_gradient, setup_context=_setup)
