"""Derivatives of one step of a cell: which of them are nonzero, which are constant, and their values.

A state is *independent* if it depends on the input and is not a function of other states of the same step.
The trace of a synapse (the derivative of the states by its weight) stores one number per independent state.
LIF has one independent state, the potential; its spike is a function of the potential.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.nn.layers import WrapperCell
from hibana.runtime.torch_internals import run_backward

__all__ = ["INPUT", "Jacobian", "Recursion", "jacobian_of", "recursion_of", "same_step_derivatives"]
__all__ += ["step_derivatives"]

INPUT = -1
"""Index of a step's input in a :data:`Pair`, where states have 0, 1, ..."""

Pair = tuple[int, int]
"""The derivative of a state after the step (first index) by a state or the input (second index)."""


class Recursion(NamedTuple):
    """The recursion ``e_t = A e_(t-1) + k x_t`` of the trace e of an input x; all neurons share A and k."""

    transition: Tensor
    """A, ``[independent states, independent states]``."""
    input_factor: Tensor
    """k, ``[independent states]``."""


@dataclass(frozen=True)
class Jacobian:
    """Which derivatives of a step are nonzero.

    The dictionaries map a derivative to whether it is constant: the same for all neurons at all steps.
    """

    over_step: dict[Pair, bool]
    """Derivatives of states after the step by :data:`INPUT` or by a state before the step."""
    same_step: dict[Pair, bool]
    """Partial derivatives of the other states by independent states of the same step."""
    independent_states: tuple[int, ...]
    """Indices of the independent states."""
    states: int
    """Number of states."""

    def state_gradients(
        self, state_grads: Sequence[Tensor | None], same_step: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The total gradient of each state before a step, by the chain rule within the previous step.

        A state that is a function of independent states passes its gradient on to them.

        Args:
            state_grads: the gradient of each state; None is zero. Gradients of further states are unchanged.
            same_step: the values of the derivatives in `self.same_step` at the previous step, in the same
                order; empty in the resting state.
        """
        totals = list(state_grads)
        for (state, i), factor in zip(self.same_step, same_step, strict=False):
            grad, total = state_grads[state], totals[i]
            if grad is not None:
                totals[i] = grad * factor if total is None else total + grad * factor
        return totals


def jacobian_of(cell: Cell, example: Tensor) -> Jacobian:
    """Which derivatives of a step of `cell` are nonzero, and which of these are constant.

    The same object is returned until the cell changes. `example` is one step of the input, ``[batch, ...]``.
    Raises Unsupported if the step can't be traced, or multiplies neurons by matrices.
    """
    cache = dependencies_of(cell).cache
    key = "jacobian", example.shape[1:], example.dtype, example.device
    jacobian: Jacobian | None = cache.get(key)
    if jacobian is None:
        jacobian = cache[key] = _compute_jacobian(cell, example)
    return jacobian


def recursion_of(cell: Cell, example: Tensor) -> Recursion | None:
    """The factors A and k of ``e_t = A e_(t-1) + k x_t``, the trace e of an input x of `cell`.

    None if the factors differ between neurons or change over time. `example` is one step of the input,
    ``[batch, ...]``. Raises Unsupported as :func:`jacobian_of`.
    """
    cache = dependencies_of(cell).cache
    key = "recursion", example.shape[1:], example.dtype, example.device
    recursion: Recursion | None = cache.get(key)
    if recursion is None or tensors_of(cell):  # the cache does not detect new values of the cell's tensors
        recursion = cache[key] = _compute_recursion(cell, jacobian_of(cell, example), example)
    return recursion


def _compute_jacobian(cell: Cell, example: Tensor) -> Jacobian:
    """The result of :func:`jacobian_of`."""
    if trace(cell, example.shape, example.dtype).matrices:
        raise Unsupported("the step multiplies its states by matrices; use hibana.Recurrent for these")
    with torch.enable_grad():
        arguments = [_zeros(example).requires_grad_() for _ in range(1 + len(cell.state_names()))]
        next_states = cell(*arguments)
    differentiable = [i for i, state in enumerate(next_states) if state.requires_grad]
    pairs = [(i, j) for i in differentiable for j in range(len(arguments))]
    derivatives = _derivatives(next_states, arguments, pairs)
    over_step = [(i, j + INPUT) for i, j in pairs if derivatives[i, j] is not None]
    same_step = _same_step_pairs(next_states, arguments)
    input_dependent = {INPUT}
    for _ in next_states:
        input_dependent |= {i for i, j in over_step if j in input_dependent}
    functions_of_others = {state for state, _ in same_step}
    independent_states = tuple(
        i for i in range(len(next_states)) if i in input_dependent and i not in functions_of_others
    )
    inner = [(i, j) for i, j in same_step if j in independent_states]
    wrapper = _DerivativeCell(cell, over_step, inner)
    traced = trace(wrapper, example.shape, example.dtype).nexts
    # a derivative is constant if it depends on numbers alone, not on states or inputs
    constant = [all(leaf.args or leaf.is_uniform for leaf in reachable([value])) for value in traced]
    return Jacobian(
        dict(zip(over_step, constant, strict=False)),
        dict(zip(inner, constant[len(over_step) :], strict=False)),
        independent_states,
        len(next_states),
    )


def _compute_recursion(cell: Cell, jacobian: Jacobian, example: Tensor) -> Recursion | None:
    """The result of :func:`recursion_of` with the current values of the cell's tensors."""
    row = {state: i for i, state in enumerate(jacobian.independent_states)}
    sources = {INPUT, *row, *(state for state, _ in jacobian.same_step)}
    over = [pair for pair in jacobian.over_step if pair[0] in row and pair[1] in sources]
    inner = [pair for pair in jacobian.same_step if pair[1] in row and any(pair[0] == j for _, j in over)]
    constant = [*(jacobian.over_step[pair] for pair in over), *(jacobian.same_step[pair] for pair in inner)]
    if not all(constant):
        return None
    next_states, values = step_derivatives(cell, [_zeros(example)] * (1 + jacobian.states), over)
    by_argument = example.new_zeros(jacobian.states, 1 + jacobian.states)
    for (i, j), value in values.items():
        by_argument[i, j - INPUT] = value.flatten()[0]
    by_independent = example.new_zeros(jacobian.states, len(row))
    by_independent[list(row), list(row.values())] = 1
    for (i, j), value in same_step_derivatives(next_states, inner).items():
        by_independent[i, row[j]] = value.flatten()[0]
    independent_rows = by_argument[list(row)]
    return Recursion(independent_rows[:, 1:] @ by_independent, independent_rows[:, 0])


def step_derivatives(
    cell: Cell, arguments: Sequence[Tensor], over_step: Iterable[Pair]
) -> tuple[Sequence[Tensor], dict[Pair, Tensor]]:
    """Runs a step; returns the states after it, with their autograd graph, and derivatives for each neuron.

    Args:
        cell: the cell.
        arguments: the input and the states before the step, each ``[batch, ...]``.
        over_step: the derivatives to compute: pairs ``(i, j)`` of a state i after the step and a state j
            before the step, or the input if j is :data:`INPUT`.
    """
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        next_states: Sequence[Tensor] = cell(*leaves)
    values = _derivatives(next_states, leaves, [(i, j - INPUT) for i, j in over_step])
    return next_states, {(i, j + INPUT): value for (i, j), value in values.items()}


def same_step_derivatives(next_states: Sequence[Tensor], same_step: Iterable[Pair]) -> dict[Pair, Tensor]:
    """The partial derivatives of states by independent states of the same step.

    Autograd returns total derivatives. The paths through other independent states are subtracted from them.

    Args:
        next_states: the states after a step, with their autograd graph.
        same_step: the derivatives to compute: pairs ``(i, j)`` of a state i and an independent state j.
    """
    same_step = list(same_step)
    independent = dict.fromkeys(j for _, j in same_step)
    inner = [(i, j) for i in independent for j in independent if i != j]
    total = _derivatives(next_states, next_states, [*same_step, *inner])
    users = {j: [i for i in independent if total.get((i, j)) is not None] for j in independent}
    direct: dict[Pair, Tensor] = {}
    for state, j in sorted(same_step, key=lambda pair: len(users[pair[1]])):
        value = total[state, j]
        for i in users[j]:  # independent states that depend on state j in the same step
            if (state, i) in direct:
                value = value - direct[state, i] * total[i, j]
        direct[state, j] = value
    return direct


def _derivatives(
    values: Sequence[Tensor], sources: Sequence[Tensor], pairs: Iterable[Pair]
) -> dict[Pair, Tensor]:
    """The derivative of ``values[i]`` by ``sources[j]`` for each pair (i, j) and neuron; None is zero."""
    derivatives = {}
    for i, j in pairs:
        ones = torch.ones_like(values[i]).detach()
        (derivatives[i, j],) = run_backward((values[i],), (ones,), (sources[j],), keep_graph=True)
    return derivatives


def _same_step_pairs(next_states: Sequence[Tensor], arguments: Sequence[Tensor]) -> list[Pair]:
    """The pairs ``(i, j)`` of a state i that is a function of states j of the same step alone."""
    same_step: list[Pair] = []
    for i, state in enumerate(next_states):
        others = {
            other.grad_fn: j
            for j, other in reversed([*enumerate(next_states)])
            if j != i and other.grad_fn is not None and all(j != dependent for dependent, _ in same_step)
            if other.grad_fn is not state.grad_fn or j < i
        }
        nodes = _separating_nodes(state, {*others}, arguments) if state.requires_grad else None
        if nodes is not None:
            same_step += [(i, others[node]) for node in nodes]
    return same_step


def _separating_nodes(state: Tensor, nodes: set[Any], arguments: Sequence[Tensor]) -> set[Any] | None:
    """The first of `nodes` on each path backwards through the autograd graph of `state`.

    None if `state` is not a function of `nodes` alone: a path to one of `arguments` contains none of them.
    """
    separating, visited, waiting = set(), set(), [state.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or any(getattr(node, "variable", None) is argument for argument in arguments):
            return None
        if node in nodes:
            separating.add(node)
        elif node not in visited:
            visited.add(node)
            waiting += [previous for previous, _ in node.next_functions if previous is not None]
    return separating


def _zeros(example: Tensor) -> Tensor:
    """One sample of zeros, ``[1, ...]``, for an `example` of shape ``[batch, ...]``."""
    return example.new_zeros(1, *example.shape[1:])


class _DerivativeCell(WrapperCell):
    """A cell whose states are derivatives of `cell`'s step; the compiler finds those that are constant."""

    def __init__(self, cell: Cell, over_step: list[Pair], same_step: list[Pair]) -> None:
        names = [f"by_step_{i}_{j - INPUT}" for i, j in over_step]
        super().__init__(cell, [*names, *(f"within_{i}_{j}" for i, j in same_step)])
        self.over_step, self.same_step = over_step, same_step

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The derivatives, then the next states of `cell`."""
        arguments = input_, *states[len(self.extra) :]
        next_states, over_step = step_derivatives(self.cell, arguments, self.over_step)
        same_step = same_step_derivatives(next_states, self.same_step)
        derivatives = [over_step[pair] for pair in self.over_step]
        derivatives += [same_step[pair] for pair in self.same_step]
        return (*derivatives, *(state.detach() for state in next_states))
