"""A compiled run as an operator of `torch.library`: what ``torch.compile`` and ``torch.export`` see.

A graph holds tensors and numbers, not cells, so the operator takes a cell's key; it reads the cell's
hyper-parameters when it runs. Eager calls do not pass through here: they go straight to the kernels, and
this module, whose registration loads much of torch, is imported only by a call that is being traced.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell, cell_of
from hibana.loop import compiled
from hibana.loop.compiled import Program, program, walkable
from hibana.loop.trace import cell_tensors
from hibana.loop.words import Unsupported

__all__ = ["refusal", "unroll"]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch leaves it so
def refusal(key: str, backend: str, device: str, dtype: torch.dtype, ndim: int) -> str:
    """Why the cell called `key` can't be compiled for steps of `ndim` dimensions, or ``""``."""
    if reason := compiled.refusal(backend, device):
        return reason
    try:
        _program(cell_of(key), backend, dtype, ndim)
    except Unsupported as reason:
        return str(reason)
    return ""


def unroll(
    cell: Cell, backend: str, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, list[Tensor]]:
    """`cell` over `inputs` through the operator; as :func:`hibana.loop.compiled.run`."""
    first = [] if state is None else list(state)
    held = list(cell_tensors(cell).values())
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, *first, *held))
    outputs, *rest = torch.ops.hibana.unroll(inputs, first, held, cell.key, backend, keep)
    return outputs, rest[: len(cell.states) - 1]


def _program(cell: Cell, backend: str, dtype: torch.dtype, ndim: int) -> Program:
    """The program for steps of some shape of `ndim` dimensions that the cell's tensors broadcast to."""
    sizes = [2] * ndim
    for tensor in cell_tensors(cell).values():
        for dimension, size in zip(range(ndim - 1, -1, -1), reversed(tensor.shape), strict=False):
            sizes[dimension] = max(sizes[dimension], size)
    return program(cell, backend, torch.Size(sizes), dtype)


def _begun(made: Program, first: Sequence[Tensor]) -> list[Tensor | None]:
    return [t.contiguous() for t in first] if first else [None for _ in made.step.states]


def _stepwise(tensor: Tensor) -> Tensor:
    return tensor if walkable(tensor) else tensor.contiguous()


_APART = False
"""A graph expects of every tensor that it begins where its memory does."""


@torch.library.custom_op("hibana::unroll", mutates_args=())
def _forward(
    inputs: Tensor, first: Sequence[Tensor], held: Sequence[Tensor], cell: str, backend: str, keep: bool
) -> list[Tensor]:
    made = program(cell_of(cell), backend, inputs.shape[1:], inputs.dtype)
    parameters = made.parameters(held, inputs)
    begun = _begun(made, first)
    outputs, last, kept = made.kernels.forward(
        _stepwise(inputs), begun, parameters, made.plan if keep else None, apart=_APART
    )
    return [outputs, *last, *kept]


@_forward.register_fake
def _(
    inputs: Tensor, first: Sequence[Tensor], held: Sequence[Tensor], cell: str, backend: str, keep: bool
) -> list[Tensor]:
    made = _program(cell_of(cell), backend, inputs.dtype, inputs.ndim - 1)
    steps, *one = inputs.shape
    kept = made.kernels.kept_shapes(steps, one) if keep else []
    last = [inputs.new_empty(one) for _ in made.step.states[1:]]
    return [inputs.new_empty((steps, *one)), *last, *(inputs.new_empty(s, dtype=d) for s, d in kept)]


@torch.library.custom_op("hibana::unroll_backward", mutates_args=())
def _backward(
    inputs: Tensor,
    first: Sequence[Tensor],
    held: Sequence[Tensor],
    kept: Sequence[Tensor],
    grad_outputs: Tensor,
    last_grads: Sequence[Tensor],
    cell: str,
    backend: str,
    learned: Sequence[bool],
) -> list[Tensor]:
    one = inputs.shape[1:]
    made = program(cell_of(cell), backend, one, inputs.dtype)
    parameters = made.parameters(held, inputs)
    begun = _begun(made, first)
    grad_input, first_grads, sums = made.kernels.backward(
        made.plan,
        inputs.shape,
        _stepwise(inputs),
        begun,
        parameters,
        kept,
        _stepwise(grad_outputs),
        [g.contiguous() for g in last_grads],
        True,
        False,
        True,
        _APART,
    )
    assert grad_input is not None
    grads = made.step.epilogue(*held, *sums) if any(learned) else [None] * len(held)
    to_held = [
        g.sum_to_size(t.shape) if g is not None else torch.zeros_like(t)
        for g, t, wanted in zip(grads, held, learned, strict=True)
        if wanted
    ]
    return [grad_input, *(g for g in first_grads if g is not None), *to_held]


@_backward.register_fake
def _(
    inputs: Tensor,
    first: Sequence[Tensor],
    held: Sequence[Tensor],
    kept: Sequence[Tensor],
    grad_outputs: Tensor,
    last_grads: Sequence[Tensor],
    cell: str,
    backend: str,
    learned: Sequence[bool],
) -> list[Tensor]:
    steps, *one = inputs.shape
    states = len(cell_of(cell).states)
    to_held = [torch.empty_like(t) for t, wanted in zip(held, learned, strict=True) if wanted]
    return [inputs.new_empty((steps, *one)), *(inputs.new_empty(one) for _ in range(states)), *to_held]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    sequence, first, held, cell, backend, keep = inputs
    if not keep:
        raise RuntimeError(
            "hibana::unroll was asked for a gradient after it was told to keep nothing for one"
        )
    made = _program(cell_of(cell), backend, sequence.dtype, sequence.ndim - 1)
    states = len(made.step.states)
    reads_input = made.plan.reads_input
    ctx.cell, ctx.backend, ctx.states, ctx.counts = cell, backend, states, (len(first), len(held))
    ctx.shape, ctx.reads_input, ctx.learned = sequence.shape, reads_input, [t.requires_grad for t in held]
    saved = output[states:]
    ctx.save_for_backward(*([sequence] if reads_input else []), *first, *held, *saved)


def _gradient(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    begun, count = ctx.counts
    one = ctx.shape[1:]
    given = [g for g in grads if g is not None]
    inputs = saved.pop(0) if ctx.reads_input else given[0].new_empty(()).expand(ctx.shape)
    first, held, kept = saved[:begun], saved[begun : begun + count], saved[begun + count :]
    outputs, *last = grads[: ctx.states]
    if outputs is None:
        outputs = inputs.new_zeros(()).expand(ctx.shape)
    last = [inputs.new_zeros(one) if g is None else g for g in last]
    grad_input, *rest = torch.ops.hibana.unroll_backward(
        inputs, first, held, kept, outputs, last, ctx.cell, ctx.backend, ctx.learned
    )
    to_first, to_learned = rest[:begun] if begun else [], iter(rest[ctx.states :])
    to_held = [next(to_learned) if wanted else None for wanted in ctx.learned]
    return grad_input, to_first, to_held, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup)
