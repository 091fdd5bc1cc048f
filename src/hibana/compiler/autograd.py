"""The node of autograd of a cell over a whole sequence, for kernels of every backend."""

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.backend import BackwardArguments, ForwardArguments, Prepared
from hibana.compiler.derivatives import check_unbatched, once_differentiable, unwrapped_apply
from hibana.compiler.draws import new_seed
from hibana.compiler.memory_layout import (
    Order,
    inverse_order,
    memory_order,
    permute_step,
    step_to_order,
    steps_contiguous,
    to_callers_order,
)
from hibana.compiler.spike_metadata import attach
from hibana.compiler.tensors import tensors_of

if TYPE_CHECKING:
    from hibana.compiler.compiling import Program
    from hibana.compiler.graph.plan import Plan


def run(
    program: "Program",
    cell: Cell,
    ends: bool,
    key: Hashable | None,
    inputs: Tensor,
    state: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """`cell` over `inputs` by `program`: its outputs, and if `ends` its last states but the emitted one.

    Outputs have the memory format of `inputs`. The run is remembered by `cell` under `key`, if there is one.
    """
    begun = () if state is None else state
    cell_tensors = tuple(tensors_of(cell).values())
    spec = specified(program, inputs, ends, len(begun))
    if spec is None:
        inputs, key = inputs.contiguous(), None
        spec = specified(program, inputs, ends, len(begun))
        assert spec is not None
    learns = torch.is_grad_enabled() and inputs.requires_grad
    if learns and not (begun or cell_tensors) and inputs.is_contiguous():
        spec = spec._replace(prepared=program.kernels.prepare(spec.plan, spec.shape, ends))
    if key is not None:
        programs.attach(cell, key, spec)
    return go(spec, inputs, (*begun, *cell_tensors))


class RunSpecification(NamedTuple):
    """All about a run but its tensors; by default, a run over contiguous inputs from rest."""

    program: "Program"
    plan: "Plan"
    """The residuals, if a gradient is wanted."""
    shape: torch.Size
    """Of the inputs, in memory order."""
    ends: bool
    """Whether the last states are wanted."""
    order: Order | None = None
    """The memory order of the dimensions, if it is another than theirs."""
    begun: int = 0
    """How many initial states are given: all, or none for a run from rest."""
    deep: bool = False
    """Whether the outputs' bits are attached without a gradient too; it costs a tenth of a forward."""
    prepared: Prepared | None = None
    """Kernels bound to all of this, for a small run with a gradient, from rest, of a cell without tensors."""


def specified(program: "Program", inputs: Tensor, ends: bool, begun: int = 0) -> RunSpecification | None:
    """A run over inputs with these strides, from `begun` states or from rest; None if they need a copy."""
    order: Order | None = None
    shape = inputs.shape
    # neurons of a sample lie together in memory where a step multiplies them; what they draw depends on order
    if not (program.step.matrices or program.step.draws or inputs.is_contiguous()):
        order = memory_order(inputs)
    if order is not None:
        shape = torch.Size(inputs.shape[d] for d in order)
    elif not steps_contiguous(inputs):
        return None
    return RunSpecification(program, program.plan, shape, ends, order, begun)


def go(
    spec: RunSpecification, inputs: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`run` with its specification; `tensors` are the initial states and those of the cell."""
    if torch.is_grad_enabled() and (
        inputs.requires_grad or (tensors and any(tensor.requires_grad for tensor in tensors))
    ):
        outputs, *last = _apply(spec, inputs, *tensors)
        _attach_bits(outputs)
        return outputs, last
    kernels = spec.program.kernels
    given = _arguments(spec, inputs, tensors, kernels.emitting if spec.deep else None)
    outputs, last = _known(kernels.forward, given)
    if spec.order is None:
        return outputs, last
    outputs, last = to_callers_order(spec.order, outputs, last)
    # not as views, which a checkpoint would give on as such, and that may not be written to then
    return outputs.detach(), [value.detach() for value in last]


def go_prepared(spec: RunSpecification, inputs: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`go` with prepared kernels, which only a call that wants the gradient of `inputs` has."""
    outputs, *last = _apply(spec, inputs)
    if outputs.numel() >= FEWEST:
        _attach_bits(outputs)
    return outputs, last


FEWEST = 256
"""Outputs below which no bits are attached: products of so few numbers are torch's."""


def _attach_bits(outputs: Tensor) -> None:
    """Attaches the bits that the node of `outputs` saved, and the mask of where it needs their gradient."""
    node: Any = outputs.grad_fn
    if node is None or outputs.numel() < FEWEST:
        return
    spikes, mask = node.spikes, node.support
    if spikes is not None or mask is not None:
        planes, length = None if spikes is None else spikes[None], outputs.shape[1:].numel()
        observers = None if mask is None else ()
        attach(outputs, planes, length, mask=None if mask is spikes else mask, observers=observers)


def _arguments(
    spec: RunSpecification, inputs: Tensor, tensors: tuple[Tensor, ...], plan: "Plan | None"
) -> ForwardArguments:
    """The arguments of the forward kernel, in memory order."""
    program, _, _, ends, order, begun, *_ = spec
    first = [step_to_order(order, t) for t in tensors[:begun]] if begun else program.at_rest
    inputs = inputs if order is None else inputs.permute(order)
    parameters = program.parameters(tensors[begun:], inputs, order)
    seed = new_seed() if program.step.draws else 0
    return ForwardArguments(inputs, first, parameters, plan, ends, seed=seed)


def _known(
    forward: Callable[[ForwardArguments], tuple[Tensor, list[Tensor], list[Tensor]]], given: ForwardArguments
) -> tuple[Tensor, list[Tensor]]:
    """The outputs and last states of `forward`; if it keeps the outputs' bits, they are attached."""
    if given.plan is None:
        outputs, last, _ = forward(given)
        return outputs, last
    outputs, last, (bits,) = forward(given)
    attach(outputs, bits[None], outputs.shape[1:].numel())
    return outputs, last


class _Run(torch.autograd.Function):
    """The whole sequence as one node.

    Other modules read `specification`, how it was run, `support`, the surrogate's mask as bits
    ``[T, ceil(N/8)]`` in memory order, lowest bit first (None: everywhere), and `spikes`, the bits of the
    outputs or None; both may be one tensor (:class:`hibana.compiler.graph.plan.Plan`).

    It saves, in this order: the inputs and the initial states that the plan reads, the cell's tensors, the
    kernels' parameters, and the residuals.
    """

    @staticmethod
    def forward(ctx: Any, spec: RunSpecification, inputs: Tensor, *tensors: Tensor) -> Any:
        program, plan, _, _, order, begun, _, prepared = spec
        ctx.specification = spec
        ctx.set_materialize_grads(False)
        if prepared is not None:
            outputs, last, residuals = prepared.forward(inputs)
            ctx.save_for_backward(*([_as_read(inputs)] if plan.reads_input else ()), *residuals)
            ctx.support = None if plan.support_at is None else residuals[plan.support_at]
            ctx.spikes = None if plan.spikes_at is None else residuals[plan.spikes_at]
            return outputs, *last
        given = _arguments(spec, inputs, tensors, plan)
        inputs, first, parameters, *_ = given
        ctx.seed = given.seed
        outputs, last, residuals = program.kernels.forward(given)
        read = (_as_read(inputs),) if plan.reads_input else ()
        needed = [first[i] for i in plan.first] if begun else ()
        ctx.save_for_backward(*read, *needed, *tensors[begun:], *parameters, *residuals)
        known = not program.step.matrices or inputs.shape[-1] % 8 == 0  # else each sample's bits are padded
        ctx.support = residuals[plan.support_at] if known and plan.support_at is not None else None
        ctx.spikes = residuals[plan.spikes_at] if known and plan.spikes_at is not None else None
        if order is not None:
            outputs, last = to_callers_order(order, outputs, last)
            # not as views, or autograd would put a node of its own above this one
            outputs, last = outputs.detach(), [value.detach() for value in last]
        return outputs, *last

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor | None, *last_grads: Tensor | None) -> Any:
        # the check for second derivatives is expensive, and only they need it
        if torch.is_grad_enabled():
            return _once(ctx, grad_outputs, *last_grads)
        check_unbatched((grad_outputs, *last_grads))
        prepared = ctx.specification.prepared
        if (
            prepared is None
            or grad_outputs is None
            or not grad_outputs.is_contiguous()
            or grad_outputs.is_neg()
            or (last_grads and any(grad is not None for grad in last_grads))
        ):
            return _backward(ctx, grad_outputs, *last_grads)
        return None, prepared.backward(saved_tensors(ctx), grad_outputs)


def _as_read(inputs: Tensor) -> Tensor:
    """`inputs` to save: a leaf as it is now, whatever ``inputs.data`` is set to."""
    return inputs if inputs.grad_fn else inputs.detach()


def _backward(ctx: Any, grad_outputs: Tensor | None, *last_grads: Tensor | None) -> Any:
    """The gradients of inputs, initial states and cell's tensors, from those of outputs and last states."""
    spec = ctx.specification
    program, plan, shape, _, order, begun, *_ = spec
    wanted = ctx.needs_input_grad[1:]  # of the inputs, the states, the cell's tensors
    saved = iter(saved_tensors(ctx))
    inputs = next(saved) if plan.reads_input else None
    first: Sequence[Tensor | None] = program.at_rest
    if begun:
        by_state = dict(zip(plan.first, islice(saved, len(plan.first)), strict=True))
        first = [by_state.get(i) for i in range(begun)]
    cell_tensors = tuple(islice(saved, len(wanted) - 1 - begun))
    parameters = tuple(islice(saved, program.step.parameters + program.step.matrices))
    if grad_outputs is not None:
        if order is not None:
            grad_outputs = grad_outputs.permute(order)
        if grad_outputs.is_neg():
            grad_outputs = grad_outputs.resolve_neg()
        if not steps_contiguous(grad_outputs):
            grad_outputs = grad_outputs.contiguous()
    grads: Sequence[Tensor | None] = program.at_rest[1:]
    if last_grads:
        grads = [None if g is None else step_to_order(order, g) for g in last_grads]
    wants_input, wants_first = wanted[0], any(wanted[1 : 1 + begun])
    given = BackwardArguments(
        shape,
        inputs,
        first,
        parameters,
        tuple(saved),
        grad_outputs,
        grads,
        wants_input=wants_input,
        wants_first=wants_first,
        seed=0 if spec.prepared else ctx.seed,
    )
    grad_input, first_grads, sums = program.kernels.backward(given)
    if order is not None:
        back = inverse_order(order)
        if grad_input is not None:
            grad_input = grad_input.permute(back)
        first_grads, sums = (
            [None if g is None else permute_step(back, g) for g in some] for some in (first_grads, sums)
        )
    if len(wanted) == 1:
        return None, grad_input
    to_state = (g if need else None for g, need in zip(first_grads, wanted[1 : 1 + begun], strict=False))
    to_cell_tensors: Sequence[Tensor | None] = (None,) * len(cell_tensors)
    if any(wanted[1 + begun :]):
        to_cell_tensors = program.step.epilogue(*cell_tensors, *sums)
    return None, grad_input, *to_state, *to_cell_tensors


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What a node saved; if its graph is gone, the error says what to do about a state."""
    try:
        found: tuple[Any, ...] = ctx.saved_tensors
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            f"{error}\nA state that hibana.run or return_state=True gave has the graph of all calls before: "
            "detach it between the calls, if each has a backward of its own."
        ) from None
    return found


_once = once_differentiable(
    _backward,
    'layer.backend = "reference", or hibana.unroll(..., backend="reference"), has derivatives of every order',
)
_apply = unwrapped_apply(_Run)
