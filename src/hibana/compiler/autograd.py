"""The autograd node of a cell's run over a sequence, for the kernels of every backend."""

from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.backend import BackwardArguments, ForwardArguments, Kernels, Prepared
from hibana.compiler.derivatives import check_unbatched, once_differentiable, unwrapped_apply
from hibana.compiler.draws import new_seed
from hibana.compiler.graph.plan import Plan
from hibana.compiler.memory_layout import fills_memory, in_layout, steps_contiguous
from hibana.compiler.spike_metadata import attach
from hibana.compiler.tensors import tensors_of


class RunSpecification(NamedTuple):
    """Everything that determines a run except its tensors."""

    kernels: Kernels
    shape: torch.Size
    """The shape of the inputs."""
    strides: tuple[int, ...]
    """The strides of a step of the inputs: those of all tensors of one step, and of steps of the outputs."""
    wants_last: bool
    """Whether the caller needs the last states."""
    initial_count: int = 0
    """The number of initial states: all states, or 0 for a run from zeros."""
    prepared: Prepared | None = None
    """Kernels bound to all of this, for a cell without tensors and initial states that they accept."""


def run(
    kernels: Kernels,
    cell: Cell,
    wants_last: bool,
    key: Hashable | None,
    inputs: Tensor,
    state: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The outputs of `cell` over `inputs`, and its last states.

    The steps of the outputs have the strides of the steps of `inputs`, if these fill their memory.

    Args:
        kernels: the kernels of the step of `cell`.
        cell: the cell, which remembers the specification of the run under `key`.
        wants_last: whether the caller needs the last states.
        key: the key of the run in the cell's cache; None: the cell remembers nothing.
        inputs: ``[T, ...]``.
        state: the initial states; None for zeros.
    """
    initial = () if state is None else state
    cell_tensors = tuple(tensors_of(cell).values())
    # Matrices multiply neurons that are adjacent in memory; random numbers depend on the neurons' order.
    is_in_order = bool(kernels.step.matrices or kernels.step.draws)
    if not (steps_contiguous(inputs) if is_in_order else fills_memory(inputs[0])):
        inputs, key = inputs.contiguous(), None
    spec = RunSpecification(kernels, inputs.shape, inputs.stride()[1:], wants_last, len(initial))
    if key is not None:
        if not cell_tensors and inputs.is_contiguous():
            plan = kernels.plan if torch.is_grad_enabled() and inputs.requires_grad else None
            prepared = kernels.prepare(plan, inputs.shape, wants_last, bool(initial))
            programs.remember(cell, key, spec._replace(prepared=prepared))
        else:
            programs.remember(cell, key, spec)
    return run_specification(spec, inputs, (*initial, *cell_tensors))


def run_specification(
    spec: RunSpecification, inputs: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs a cell over `inputs`; returns the outputs, and the last states, if the caller needs them.

    `tensors` are the initial states, then the cell's tensors.
    """
    if torch.is_grad_enabled() and (
        inputs.requires_grad or (tensors and any(tensor.requires_grad for tensor in tensors))
    ):
        outputs, *last = _apply(spec, inputs, *tensors)
        _attach_region(outputs)
        return outputs, last
    if spec.prepared is not None:
        return spec.prepared.forward(inputs, tensors)[:2]
    outputs, last, _ = spec.kernels.forward(_arguments(spec, inputs, tensors, None))
    return outputs, _with_output_state(spec, outputs, last)


def _with_output_state(spec: RunSpecification, outputs: Tensor, last: list[Tensor]) -> list[Tensor]:
    """The `last` states and, if it is missing among them, the output state."""
    if spec.wants_last and len(last) < len(spec.kernels.step.states):
        # not a view, which would keep all steps in memory and change with them
        last.append(outputs[-1].clone())
    return last


MIN_OUTPUTS = 256
"""Minimum outputs that get metadata attached; torch multiplies fewer numbers faster."""


def _attach_region(outputs: Tensor) -> None:
    """Attaches to `outputs` the mask of where their gradient has an effect, which their node has saved."""
    node: Any = outputs.grad_fn
    if node is not None and outputs.numel() >= MIN_OUTPUTS and node.support is not None:
        is_spikes = node.specification.kernels.plan.support_is_spikes
        attach(outputs, outputs.shape[1:].numel(), node.support, is_spikes=is_spikes)


def _arguments(
    spec: RunSpecification, inputs: Tensor, tensors: tuple[Tensor, ...], plan: Plan | None
) -> ForwardArguments:
    """The arguments of the forward kernel.

    `tensors` are the initial states, then the cell's tensors; `plan`: the residuals to store, None for none.
    """
    kernels, count = spec.kernels, spec.initial_count
    initial = [in_layout(tensor.resolve_neg(), spec.strides) for tensor in tensors[:count]]
    first = initial or kernels.zero_states
    parameters = kernels.parameters(tensors[count:], spec.shape[1:], spec.strides)
    seed = new_seed() if kernels.step.draws else 0
    return ForwardArguments(inputs, first, parameters, plan, spec.wants_last, seed=seed)


class _Run(torch.autograd.Function):
    """A run over a sequence as one node.

    Its attribute `copies_output` is whether the last of its last states is a copy of the last output. Other
    modules read its attributes `specification` and `support`, the mask of the surrogate as bits
    ``[T, ceil(N/8)]`` in memory order, lowest bit first; None: everywhere.

    It saves, in this order: the inputs and the initial states that the plan reads, the cell's tensors, the
    kernels' parameters, and the residuals.
    """

    @staticmethod
    def forward(ctx: Any, spec: RunSpecification, inputs: Tensor, *tensors: Tensor) -> Any:
        """The outputs and the last states; `tensors` are the initial states, then the cell's tensors."""
        kernels, count, prepared = spec.kernels, spec.initial_count, spec.prepared
        plan = kernels.plan
        ctx.specification = spec
        ctx.set_materialize_grads(False)
        ctx.copies_output = spec.wants_last
        if prepared is not None and prepared.backward is not None:
            outputs, last, residuals = prepared.forward(inputs, tensors)
            saved_inputs = (_frozen_leaf(inputs),) if plan.reads_input else ()
            first = [tensors[i] for i in plan.first] if count else ()
            ctx.save_for_backward(*saved_inputs, *first, *residuals)
            ctx.support = None if plan.support_at is None else residuals[plan.support_at]
            return outputs, *last
        arguments = _arguments(spec, inputs, tensors, plan)
        ctx.seed = arguments.seed
        outputs, last, residuals = kernels.forward(arguments)
        ctx.copies_output = spec.wants_last and len(last) < len(kernels.step.states)
        last = _with_output_state(spec, outputs, last)
        saved_inputs = (_frozen_leaf(inputs),) if plan.reads_input else ()
        initial = [arguments.first[i] for i in plan.first] if count else ()
        saved = *saved_inputs, *initial, *tensors[count:], *arguments.parameters, *residuals
        ctx.save_for_backward(*saved)
        is_packed = not kernels.step.matrices or inputs.shape[-1] % 8 == 0  # without padding between samples
        ctx.support = residuals[plan.support_at] if is_packed and plan.support_at is not None else None
        return outputs, *last

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor | None, *last_grads: Tensor | None) -> Any:
        """The gradients of the arguments of :meth:`forward`, as :func:`_backward` returns them."""
        # With grad mode on, a second derivative may follow; `_checked_backward` raises an error for it, which
        # is slow.
        if torch.is_grad_enabled():
            return _checked_backward(ctx, grad_outputs, *last_grads)
        check_unbatched((grad_outputs, *last_grads))
        spec = ctx.specification
        # A prepared kernel reads gradients from contiguous memory at one address, without a pending negation.
        # `_backward` copes with the other cases, and with a gradient of the last of several outputs.
        if spec.prepared is None or spec.prepared.backward is None or grad_outputs is None:
            return _backward(ctx, grad_outputs, *last_grads)
        *grads, output_grad = last_grads or (None,)
        total: Tensor | None = grad_outputs
        if output_grad is not None:
            total = grad_outputs + output_grad if spec.shape[0] == 1 else None
        if total is None or not all(map(_is_plain, (total, *grads))):
            return _backward(ctx, grad_outputs, *last_grads)
        wants_first = any(ctx.needs_input_grad[2:])
        grad_input, first = spec.prepared.backward(saved_tensors(ctx), total, grads, wants_first)
        return None, grad_input, *(first or (None,) * spec.initial_count)


def _is_plain(grad: Tensor | None) -> bool:
    """Whether a prepared kernel reads `grad` as it is."""
    return grad is None or (grad.is_contiguous() and not grad.is_neg())


def _frozen_leaf(inputs: Tensor) -> Tensor:
    """`inputs` to save; a leaf as its current memory, so that setting ``inputs.data`` does not change it."""
    return inputs if inputs.grad_fn else inputs.detach()


def _backward(ctx: Any, grad_outputs: Tensor | None, *last_grads: Tensor | None) -> Any:
    """The gradients of the inputs, the initial states and the cell's tensors of the node `ctx`.

    Args:
        ctx: the node.
        grad_outputs: the gradient of the outputs; None for zeros.
        last_grads: the gradients of the last states; None for zeros.
    """
    spec = ctx.specification
    kernels, count, strides = spec.kernels, spec.initial_count, spec.strides
    plan, step = kernels.plan, kernels.step
    needs_grad = ctx.needs_input_grad[1:]  # for the inputs, the initial states, the cell's tensors
    saved = iter(saved_tensors(ctx))
    # A hook for saved tensors, such as one that stores them elsewhere, may return tensors with other strides.
    inputs = in_layout(next(saved), strides) if plan.reads_input else None
    first: Sequence[Tensor | None] = kernels.zero_states
    if count:
        saved_states = {i: in_layout(next(saved), strides) for i in plan.first}
        first = [saved_states.get(i) for i in range(count)]
    cell_tensors = tuple(islice(saved, len(needs_grad) - 1 - count))
    rows = [in_layout(row, strides) for row in islice(saved, step.parameters)]
    parameters = (*rows, *islice(saved, step.arguments - step.parameters))
    grad_outputs, *grads = [
        None if grad is None else in_layout(grad.resolve_neg(), strides)
        for grad in (grad_outputs, *(last_grads or kernels.zero_states[1:]))
    ]
    if ctx.copies_output:
        *grads, output_grad = grads
        grad_outputs = _add_to_last(grad_outputs, output_grad, spec)
    arguments = BackwardArguments(
        spec.shape,
        strides,
        inputs,
        first,
        parameters,
        [residual.contiguous() for residual in saved],
        grad_outputs,
        grads,
        wants_input=needs_grad[0],
        wants_first=any(needs_grad[1 : 1 + count]),
        seed=0 if spec.prepared else ctx.seed,
    )
    grad_input, first_grads, sums = kernels.backward(arguments)
    if len(needs_grad) == 1:
        return None, grad_input
    state_grads = (
        g if need else None for g, need in zip(first_grads, needs_grad[1 : 1 + count], strict=False)
    )
    cell_grads: Sequence[Tensor | None] = (None,) * len(cell_tensors)
    if any(needs_grad[1 + count :]):
        cell_grads = step.epilogue(*cell_tensors, *sums)
    return None, grad_input, *state_grads, *cell_grads


def _add_to_last(grad_outputs: Tensor | None, grad: Tensor | None, spec: RunSpecification) -> Tensor | None:
    """The gradient of the outputs plus `grad`, that of a copy of the last output; None for zeros."""
    if grad is None:
        return grad_outputs
    total = grad.new_empty_strided(spec.shape, (grad.numel(), *spec.strides))
    total = total.zero_() if grad_outputs is None else total.copy_(grad_outputs)
    total[-1] += grad
    return total


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """The tensors that a node saved.

    Raises RuntimeError if a backward has freed them, with advice on states that are passed between calls.
    """
    try:
        tensors: tuple[Any, ...] = ctx.saved_tensors
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            f"{error}\nA state that hibana.run or return_state=True gave has the graph of all calls before: "
            "detach it between the calls, if each has a backward of its own."
        ) from None
    return tensors


_checked_backward = once_differentiable(
    _backward,
    'layer.backend = "reference", or hibana.unroll(..., backend="reference"), has derivatives of every order',
)
_apply = unwrapped_apply(_Run)
