"""Compiled runs of a cell: programs found or made, and their place in autograd.

A *program* is one step's trace and plan with a device's kernels. Programs are shared by cells that are
alike: of one class, with equal hyper-parameters and tensors of equal shapes. What autograd sees is one
function over the whole sequence, whether its kernels run on a CPU or a GPU.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.loop.absent import Absences
from hibana.loop.backend import Kernels, Launch, kernels_of
from hibana.loop.derivatives import differentiated_once
from hibana.loop.graph.bounds import takes_zeros
from hibana.loop.graph.fingerprint import NOT_HYPER, fingerprint, hooked, is_fixed
from hibana.loop.graph.plan import Plan, make_plan
from hibana.loop.graph.synapses import needed
from hibana.loop.graph.trace import Step, cell_tensors, shape_class, trace
from hibana.loop.graph.words import Unsupported
from hibana.loop.shared import Bounded, structure

__all__ = [
    "Program",
    "from_rest",
    "known",
    "program_of",
    "program",
    "remember",
    "run",
    "walkable",
    "wants_gradient",
]


@dataclass(frozen=True)
class Program:
    """One step, compiled for one shape, dtype and device."""

    step: Step
    plan: Plan
    kernels: Kernels
    at_rest: tuple[None, ...]
    """The state begun with, where it is zeros that need not be written out."""
    absences: Absences
    takes_zeros: bool = True
    """Whether its kernels may take gradients that are absent for zeros; else `absences` runs its backward."""

    def parameters(
        self, held: Sequence[Tensor], inputs: Tensor, order: list[int] | None = None
    ) -> list[Tensor]:
        """What the kernels take for the cell's tensors: a number, or one per neuron; then the matrices.

        `inputs` are given in the `order` in which they lie in memory.
        """
        if not (self.step.parameters or self.step.matrices):
            return []
        one = inputs.shape[1:]
        shape = one if order is None else [one[d - 1] for d in _inverse(order)[1:]]
        with torch.no_grad():
            values = self.step.prologue(*held)
        dtype, count = self.kernels.dtype, self.step.parameters
        return [
            value.to(dtype).resolve_neg()
            if value.numel() == 1
            else _step_in(order, value.expand(shape).to(dtype))
            for value in values[:count]
        ] + [matrix.detach().resolve_neg() for matrix in values[count:]]


def program(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> Program:
    """The program of `cell` for steps of `shape`, made when first asked for.

    Raises:
        Unsupported: if there can be none; the reason is its message.
    """
    place = (backend, shape, dtype)
    found: Program | None = known(cell, place)
    if found:
        return found
    alike = fingerprint(cell)
    served = _SHARED.get((alike, place)) or _shared_program(cell, alike, place)
    if isinstance(served, str):
        raise Unsupported(served)
    remember(cell, place, served)
    return served


def known(cell: Cell, call: Hashable) -> Any:
    """What was remembered for `call`, unless `cell` can have changed since; else None."""
    made = cell.__dict__.get("made")
    return made.get(call) if made and _is_bare(cell) else None


def remember(cell: Cell, call: Hashable, what: Any) -> None:
    """Has :func:`known` find `what` until an attribute of `cell` is set, if all of it is plain."""
    if _is_plain(cell):
        cell.__dict__.setdefault("made", Bounded(CALLS))[call] = what


CALLS = 128
"""Calls that are remembered of a cell, which differ in shape, dtype, threads, …"""
PROGRAMS = 1024
STRUCTURES = 256

_Place = tuple[str, torch.Size, torch.dtype]
_SHARED: dict[Hashable, Program | str] = Bounded(PROGRAMS)
_BY_STRUCTURE: dict[Hashable, tuple[Step, Kernels]] = Bounded(STRUCTURES)


def _is_plain(cell: Cell) -> bool:
    """Whether nothing but setting an attribute can change what `cell` computes."""
    hyper = (v for k, v in vars(cell).copy().items() if k not in NOT_HYPER)
    return _is_bare(cell) and all(map(is_fixed, hyper))


def _is_bare(cell: Cell) -> bool:
    return not (cell._parameters or cell._buffers or cell._modules or hooked(cell))


def _shared_program(cell: Cell, alike: Hashable, place: _Place) -> Program | str:
    """A program that cells alike have made before, for this shape or for any; else a new one."""
    backend, shape, dtype = place
    anywhere = (backend, shape_class(cell_tensors(cell), shape), dtype)
    found: Program | str | None = _SHARED.get((alike, anywhere))
    if found:
        return found
    try:
        step, kernels = _compiled(cell, backend, shape, dtype)
    except Unsupported as reason:
        found = str(reason)
        _SHARED[alike, place] = found
    else:
        found = program_of(step, kernels)
        _SHARED[alike, anywhere if step.any_size else place] = found
    return found


def program_of(step: Step, kernels: Kernels) -> Program:
    """The program of `step` with its `kernels`."""
    zeros = takes_zeros(step)
    if not zeros:
        kernels = kernels.alike(step)
        kernels.replayed = None  # what a step keeps must be at hand
    return Program(step, kernels.plan, kernels, (None,) * len(step.states), Absences(step, kernels), zeros)


def _compiled(cell: Cell, backend: str, shape: torch.Size, dtype: torch.dtype) -> tuple[Step, Kernels]:
    """The step of `cell`, and its kernels: those of one that differs in its constants alone, if known."""
    step = trace(cell, shape, dtype, kernels_of(backend).device())
    if (step.matrices or step.blank) and not takes_zeros(step):
        other = "a product" if step.matrices else "an operation without a slope"
        raise Unsupported(f"a derivative of the step may be infinite, beside {other}")
    alike = (backend, dtype, structure(step))
    found = _BY_STRUCTURE.get(alike)
    if found is None:
        make = kernels_of(backend, bool(step.matrices))
        kernels = make(step, make_plan(step, needed(step)), dtype)
        _BY_STRUCTURE[alike] = step, kernels
        return step, kernels
    first, kernels = found  # whose plan speaks of the values of the first step
    own = {name: getattr(step, name) for name in ("constants", "prologue", "epilogue", "any_size")}
    step = replace(first, **own)
    return step, kernels.alike(step)


def run(
    program: Program, cell: Cell, ends: bool, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """`cell` over `inputs` by `program`: what it emits, and its last states but the emitted one, if `ends`.

    Memory is walked in its order, whatever the order of dimensions: outputs lie as `inputs` do.
    """
    order = None
    if not inputs.is_contiguous():
        order = None if program.step.matrices else _memory_order(inputs)  # neurons of a sample lie together
        if order is None and not walkable(inputs):
            inputs = inputs.contiguous()
    begun = () if state is None else state
    held = tuple(cell_tensors(cell).values())
    shape = inputs.shape if order is None else torch.Size(inputs.shape[d] for d in order)
    constant = inputs.stride(0) == 0 and shape[0] > 1
    if order is None and not (begun or held or constant) and inputs.is_contiguous():
        return go(from_rest(program, inputs, ends), inputs, ())
    plan = program.kernels.plan_for(shape)
    return go(Way(program, plan, shape, ends, order, len(begun), constant), inputs, (*begun, *held))


class Way(NamedTuple):
    """All about a run but its tensors; by itself, a run over contiguous inputs from rest."""

    program: Program
    plan: Plan
    """What is kept, if a gradient is wanted."""
    shape: torch.Size
    """Of the inputs, in the order in which they lie in memory."""
    ends: bool
    order: list[int] | None = None
    """The order of dimensions in which they lie in memory, if it is another than theirs."""
    begun: int = 0
    """How many states it is given to begin with: all, or none if it begins at rest."""
    constant: bool = False
    """Whether the inputs are the same at every step, as their strides say."""
    launch: Launch | None = None
    """What runs it without Python, if something does: see :mod:`hibana.loop.cpu.node`."""


def from_rest(program: Program, inputs: Tensor, ends: bool) -> Way:
    """How contiguous `inputs` are run from rest, for a cell without tensors."""
    shape = inputs.shape
    plan = program.kernels.plan_for(shape)
    launch = None
    if program.takes_zeros:
        launch = program.kernels.launch(plan if wants_gradient(inputs) else None, shape, ends)
    return Way(program, plan, shape, ends, launch=launch)


def wants_gradient(inputs: Tensor) -> bool:
    """Whether a gradient may come back to `inputs`."""
    return torch.is_grad_enabled() and inputs.requires_grad


def go(way: Way, inputs: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`run` once it is known how; `tensors` are the states begun with and those of the cell."""
    if way.launch is not None:
        return way.launch(inputs, way)
    if torch.is_grad_enabled() and (
        inputs.requires_grad or (tensors and any(tensor.requires_grad for tensor in tensors))
    ):
        outputs, *last = _apply(way, inputs, *tensors)
        return outputs, last
    program, _, _, ends, order, begun, _, _ = way
    first = [_step_in(order, t) for t in tensors[:begun]] if begun else program.at_rest
    inputs = inputs if order is None else inputs.permute(order)
    parameters = program.parameters(tensors[begun:], inputs, order)
    outputs, last, _ = program.kernels.forward(inputs, first, parameters, None, ends)
    return (outputs, last) if order is None else _back(order, outputs, last)


class _Run(torch.autograd.Function):
    """The whole sequence as one node, whose attributes `way`, `support` and `spikes` others read.

    `way` is how it was run. `support` is where a gradient can matter: None (everywhere) or the bits
    ``[T, ceil(N/8)]`` of a truth value per neuron and step, in the order in which a step lies in memory,
    lowest bit first; `spikes` are the bits of what was emitted, or None. Both may be the same tensor: see
    :class:`hibana.loop.graph.plan.Plan`.
    """

    @staticmethod
    def forward(ctx: Any, way: Way, inputs: Tensor, *tensors: Tensor) -> Any:
        program, plan, _, ends, order, begun, constant, _ = way
        held = tensors[begun:]
        ctx.way = way
        if constant:
            ctx.inputs = inputs
        first = [_step_in(order, t) for t in tensors[:begun]] if begun else program.at_rest
        if order is not None:
            inputs = inputs.permute(order)
        parameters = program.parameters(held, inputs, order)
        outputs, last, kept = program.kernels.forward(inputs, first, parameters, plan, ends)
        if not program.takes_zeros and ends and len(last) < len(program.step.states):
            last = [*last, outputs[-1].clone()]  # whose gradient is none of the outputs'
        read = (inputs,) if plan.reads_input else ()
        needed = [first[i] for i in plan.first] if begun else ()
        ctx.save_for_backward(*read, *needed, *held, *parameters, *kept)
        ctx.set_materialize_grads(False)
        known = not program.step.matrices or inputs.shape[-1] % 8 == 0  # else each sample's bits are padded
        ctx.support = kept[plan.support_at] if known and plan.support_at is not None else None
        ctx.spikes = kept[plan.spikes_at] if known and plan.spikes_at is not None else None
        if order is not None:
            outputs, last = _back(order, outputs, last)
            # not as views, or autograd would put a node of its own above this one
            outputs, last = outputs.detach(), [value.detach() for value in last]
        return outputs, *last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        # what refuses a second derivative costs a good part of a small backward, and matters only for one
        return (_once if torch.is_grad_enabled() else _backward)(ctx, *grads)


def _backward(ctx: Any, grad_outputs: Tensor | None, *last_grads: Tensor | None) -> Any:
    program, plan, shape, _, order, begun, constant, _ = ctx.way
    wanted = ctx.needs_input_grad[1:]  # of the inputs, the states, the cell's tensors
    step, saved = program.step, ctx.saved_tensors
    a = int(plan.reads_input)  # in the order of `_Run.forward`
    b = a + (len(plan.first) if begun else 0)
    c = b + len(wanted) - 1 - begun
    d = c + step.parameters + step.matrices
    inputs, needed, held, parameters, kept = saved[:a], saved[a:b], saved[b:c], saved[c:d], saved[d:]
    first: Sequence[Tensor | None] = program.at_rest
    if begun:
        by_state = dict(zip(plan.first, needed, strict=True))
        first = [by_state.get(i) for i in range(begun)]
    if grad_outputs is not None:
        if order is not None:
            grad_outputs = grad_outputs.permute(order)
        grad_outputs = grad_outputs.resolve_neg()
        if not walkable(grad_outputs):
            grad_outputs = grad_outputs.contiguous()
    grads: Sequence[Tensor | None] = program.at_rest[1:]
    if last_grads:
        grads = [None if g is None else _step_in(order, g) for g in last_grads]
    if not program.takes_zeros:
        return _of_what_is_there(
            ctx, (inputs[0] if inputs else None, first, parameters, kept), held, grad_outputs, grads
        )
    constant = constant and wanted[0] and _only_summed(ctx.inputs)
    grad_input, first_grads, sums = program.kernels.backward(
        plan,
        shape,
        inputs[0] if inputs else None,
        first,
        parameters,
        kept,
        grad_outputs,
        grads,
        wanted[0],
        constant,
        any(wanted[1 : 1 + begun]),
    )
    if constant and grad_input is not None:
        grad_input = (grad_input / shape[0]).expand(shape[0], *grad_input.shape)
    if order is not None:
        back = _inverse(order)
        grad_input = None if grad_input is None else grad_input.permute(back)
        first_grads = [None if g is None else _step_back(back, g) for g in first_grads]
        sums = [_step_back(back, value) for value in sums]
    if len(wanted) == 1:
        return None, grad_input
    to_state = (g if need else None for g, need in zip(first_grads, wanted[1 : 1 + begun], strict=False))
    to_held: Sequence[Tensor | None] = (None,) * len(held)
    if any(wanted[1 + begun :]):
        last = frozenset(i for i, grad in enumerate(grads) if grad is not None)
        there = program.absences.there(sums, last, grad_outputs is not None, shape[0])
        to_held = program.absences.epilogue(held, there)
    return None, grad_input, *to_state, *to_held


def _of_what_is_there(
    ctx: Any,
    read: tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor], Sequence[Tensor]],
    held: Sequence[Tensor],
    grad_outputs: Tensor | None,
    grads: Sequence[Tensor | None],
) -> Any:
    """:func:`_backward` where absent gradients can't be taken for zeros."""
    program, plan, shape, _, order, begun, _, _ = ctx.way
    wanted = ctx.needs_input_grad[1:]
    found = program.absences.backward(plan, shape, *read, grad_outputs, grads, wanted[0])
    grad_input, first, sums = found
    if order is not None:
        back = _inverse(order)
        grad_input = None if grad_input is None else grad_input.permute(back)
        first, sums = ([None if g is None else _step_back(back, g) for g in some] for some in (first, sums))
    to_state = (g if need else None for g, need in zip(first, wanted[1 : 1 + begun], strict=False))
    to_held: Sequence[Tensor | None] = (None,) * len(held)
    if any(wanted[1 + begun :]):
        to_held = program.absences.epilogue(held, sums)
    return None, grad_input, *to_state, *to_held


_once = differentiated_once(
    _backward, 'backend="reference", of hibana.unroll and of each layer, has derivatives of every order'
)
_apply: Callable[..., Any] = super(torch.autograd.Function, _Run).apply
"""Without what ``Function.apply`` does for the transforms of ``torch.func``, whose calls never come here."""


def _only_summed(inputs: Tensor) -> bool:
    """Whether all that becomes of the gradient of `inputs`, expanded over time, is its sum over time.

    Not so if somebody looks at the gradient of each step: through a hook, `retain_grad`, or
    ``torch.autograd.grad``, which then does not run the node that sums. (Asked for `inputs` and for what
    it was expanded from in one call, ``torch.autograd.grad`` gives `inputs` the mean over time at each step.)
    """
    node = inputs.grad_fn
    return (
        node is not None
        and node.name() == "ExpandBackward0"
        and not inputs.retains_grad
        and not inputs._backward_hooks
        and any(_is_reached(n) for n, _ in node.next_functions if n is not None)
    )


def _is_reached(node: Any) -> bool:
    """Whether the backward that runs now goes on to `node`."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        if node.name() != "torch::autograd::AccumulateGrad":
            raise
        return True  # torch won't say it of a leaf that torch.autograd.grad was asked for


def walkable(tensor: Tensor) -> bool:
    """Whether each step of `tensor` is contiguous, whatever its stride over time."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _step_in(order: Sequence[int] | None, value: Tensor) -> Tensor:
    """One step's `value`, contiguous in the `order` of the sequence's dimensions."""
    value = value.resolve_neg()
    return value.contiguous() if order is None else value.permute([d - 1 for d in order[1:]]).contiguous()


def _step_back(back: Sequence[int], value: Tensor) -> Tensor:
    return value.permute([d - 1 for d in back[1:]])


def _back(order: Sequence[int] | None, outputs: Tensor, last: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What lies in `order` as the caller has its dimensions."""
    if order is None:
        return outputs, last
    back = _inverse(order)
    return outputs.permute(back), [_step_back(back, value) for value in last]


def _memory_order(inputs: Tensor) -> list[int] | None:
    """The order of dimensions in which steps of `inputs` are contiguous, if it is another than theirs."""
    if walkable(inputs):
        return None
    strides = inputs.stride()
    rest = sorted(range(1, inputs.ndim), key=lambda dimension: -strides[dimension])
    order = [0, *rest]
    return order if inputs.permute(order)[0].is_contiguous() else None
