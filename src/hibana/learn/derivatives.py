"""Derivatives of one step of a cell: which of them are nonzero, which are constant, and their values.

The trace of a synapse stores one number per *component*: a state that depends on the input and is not a
function of other states of the same step. The one component of LIF is the potential.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.runtime.torch_internals import run_backward

__all__ = ["INPUT", "CellDerivatives", "Jacobian", "Recursion", "same_step_derivatives", "step_derivatives"]

INPUT = -1
"""Index of a step's input in a :data:`Pair`, where states have 0, 1, ..."""

Pair = tuple[int, int]
"""The derivative of a state after the step (first index) by a state or the input (second index)."""


class Recursion(NamedTuple):
    """The recursion ``e_t = A e_(t-1) + k x_t`` of a trace whose factors all neurons and steps share."""

    transition: Tensor
    """A, ``[components, components]``."""
    input_factor: Tensor
    """k, ``[components]``."""


@dataclass(frozen=True)
class Jacobian:
    """The nonzero derivatives of a step. A dictionary's value is True if all neurons and steps share it."""

    over_step: dict[Pair, bool]
    """Derivatives of states after the step by :data:`INPUT` or by a state before the step."""
    same_step: dict[Pair, bool]
    """Derivatives of states that are functions of components of the same step, by each component alone."""
    between_components: tuple[Pair, ...]
    """Derivatives of components by other components of the same step."""
    components: tuple[int, ...]
    states: int
    """Number of states."""

    def recursion(self, cell: Cell, example: Tensor) -> Recursion | None:
        """The recursion of the trace with the cell's current values; None if it differs between neurons.

        Args:
            cell: the cell of this Jacobian.
            example: one step of its input, ``[batch, ...]``.
        """
        row = {state: i for i, state in enumerate(self.components)}
        sources = {INPUT, *row, *(state for state, _ in self.same_step)}
        over = [pair for pair in self.over_step if pair[0] in row and pair[1] in sources]
        inner = [pair for pair in self.same_step if pair[1] in row and any(pair[0] == j for _, j in over)]
        if not all(self.over_step[pair] for pair in over) or not all(self.same_step[pair] for pair in inner):
            return None
        next_states, values = step_derivatives(cell, [_zeros(example)] * (1 + self.states), over)
        by_argument = example.new_zeros(self.states, 1 + self.states)
        for (i, j), value in values.items():
            by_argument[i, j - INPUT] = value.flatten()[0]
        by_component = example.new_zeros(self.states, len(row))
        by_component[list(row), list(row.values())] = 1
        for (i, j), value in same_step_derivatives(next_states, inner, self.between_components).items():
            by_component[i, row[j]] = value.flatten()[0]
        component_rows = by_argument[list(row)]
        return Recursion(component_rows[:, 1:] @ by_component, component_rows[:, 0])

    def component_gradients(
        self, state_grads: Sequence[Tensor | None], same_step: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of the components, from the gradients of all states by the chain rule.

        Args:
            state_grads: the gradient of each state; None is zero.
            same_step: values of the derivatives :attr:`same_step`; empty in the resting state.
        """
        totals = {i: state_grads[i] for i in self.components}
        for (state, i), factor in zip(self.same_step, same_step, strict=False):
            grad, total = state_grads[state], totals[i]
            if grad is not None:
                totals[i] = grad * factor if total is None else total + grad * factor
        return list(totals.values())


@final
class CellDerivatives:
    """Caches the Jacobian and the trace recursion of a cell until the cell changes.

    Args:
        cell: the cell whose step is differentiated.
        watched: the cell whose changes invalidate the cache, if `cell` only wraps it.
    """

    def __init__(self, cell: Cell, watched: Cell | None = None) -> None:
        self.cell, self.watched = cell, cell if watched is None else watched
        self.key: Any = None
        """Identifies the cell's settings and the shape, dtype and device of the cached Jacobian."""
        self._jacobian: Jacobian | None = None
        self._recursion: Recursion | None = None
        self._is_current = False

    def jacobian(self, example: Tensor) -> Jacobian:
        """The Jacobian for inputs like `example`, ``[batch, ...]``; raises as :func:`jacobian_of`."""
        key = dependencies_of(self.watched).key, example.shape[1:], example.dtype, example.device
        if self._jacobian is None or self.key != key:
            self._jacobian, self.key, self._is_current = jacobian_of(self.cell, example), key, False
        return self._jacobian

    def recursion(self, example: Tensor) -> Recursion | None:
        """The result of :meth:`Jacobian.recursion`."""
        jacobian = self.jacobian(example)
        if not self._is_current:
            self._recursion = jacobian.recursion(self.cell, example)
            self._is_current = not tensors_of(self.watched)  # values of tensors change without a new key
        return self._recursion


def jacobian_of(cell: Cell, example: Tensor) -> Jacobian:
    """The Jacobian of a step of `cell` for inputs like `example`, ``[batch, ...]``.

    Raises:
        Unsupported: if the step can't be traced, or multiplies neurons by matrices.
    """
    if trace(cell, example.shape, example.dtype).matrices:
        raise Unsupported("the step multiplies its states by matrices; use hibana.Recurrent for these")
    with torch.enable_grad():
        arguments = [_zeros(example).requires_grad_() for _ in range(1 + len(cell.state_names()))]
        next_states = cell(*arguments)
    over_step = [
        (i, j - 1)
        for i, state in enumerate(next_states)
        if state.requires_grad
        for j, grad in enumerate(_gradients(state, arguments))
        if grad is not None
    ]
    same_step, between_components = _same_step_pairs(next_states, arguments)
    input_dependent = {INPUT}
    for _ in next_states:
        input_dependent |= {i for i, j in over_step if j in input_dependent}
    functions_of_others = {state for state, _ in same_step}
    components = tuple(
        i for i in range(len(next_states)) if i in input_dependent and i not in functions_of_others
    )
    inner = [(i, j) for i, j in same_step if j in components]
    wrapper = _DerivativeCell(cell, over_step, inner, between_components)
    constant = [_is_constant(value) for value in trace(wrapper, example.shape, example.dtype).nexts]
    return Jacobian(
        dict(zip(over_step, constant, strict=False)),
        dict(zip(inner, constant[len(over_step) :], strict=False)),
        tuple(between_components),
        components,
        len(next_states),
    )


def step_derivatives(
    cell: Cell, arguments: Sequence[Tensor], over_step: Iterable[Pair]
) -> tuple[Sequence[Tensor], dict[Pair, Tensor]]:
    """The states after a step, with their autograd graph, and the derivatives `over_step` of each neuron.

    Args:
        cell: the cell.
        arguments: the input and the states before the step.
        over_step: pairs as in :attr:`Jacobian.over_step`.
    """
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        next_states: Sequence[Tensor] = cell(*leaves)
    values = _derivatives(next_states, leaves, [(i, j - INPUT) for i, j in over_step])
    return next_states, {(i, j + INPUT): value for (i, j), value in values.items()}


def same_step_derivatives(
    next_states: Sequence[Tensor], same_step: Iterable[Pair], between_components: Sequence[Pair]
) -> dict[Pair, Tensor]:
    """The derivatives of states by components (states with a trace) of the same step.

    A pair ``(i, j)`` is the derivative of state i by component j. Autograd gives total derivatives; the
    paths through other components are subtracted. Components that depend on most others come first.
    """
    same_step = list(same_step)
    total = _derivatives(next_states, next_states, [*same_step, *(between_components if same_step else ())])
    direct: dict[Pair, Tensor] = {}
    for state, j in sorted(same_step, key=lambda pair: -sum(i == pair[1] for i, _ in between_components)):
        value = total[state, j]
        for i, source in between_components:  # subtract the paths through other components
            if source == j and (state, i) in direct:
                value = value - direct[state, i] * total[i, j]
        direct[state, j] = value
    return direct


def _derivatives(
    values: Sequence[Tensor], sources: Sequence[Tensor], pairs: Iterable[Pair]
) -> dict[Pair, Tensor]:
    """For each pair (i, j): the derivative of ``values[i]`` by ``sources[j]``, on which it depends."""
    by_value: dict[int, list[int]] = {}
    for i, j in pairs:
        by_value.setdefault(i, []).append(j)
    return {
        (i, j): grad
        for i, indices in by_value.items()
        for j, grad in zip(indices, _gradients(values[i], [sources[j] for j in indices]), strict=True)
    }


def _gradients(state: Tensor, sources: Sequence[Tensor]) -> Any:
    """The gradient of the sum of `state` by each source; None if `state` does not depend on it."""
    ones = torch.ones_like(state).detach()
    return run_backward((state,), (ones,), tuple(sources), keep_graph=True)


def _same_step_pairs(
    next_states: Sequence[Tensor], arguments: Sequence[Tensor]
) -> tuple[list[Pair], list[Pair]]:
    """The pairs of `same_step` and of `between_components` in :class:`Jacobian`, of all states."""
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
    sources = sorted({j for _, j in same_step})
    between_components = [
        (i, j)
        for i in sources
        for j, grad in zip(
            sources, _gradients(next_states[i], [next_states[j] for j in sources]), strict=True
        )
        if j != i and grad is not None
    ]
    return same_step, between_components


def _separating_nodes(state: Tensor, nodes: set[Any], arguments: Sequence[Tensor]) -> set[Any] | None:
    """The `nodes` first on each path of the graph of `state`; None if a path to `arguments` avoids them."""
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


def _is_constant(value: Value) -> bool:
    """Whether all neurons and steps share `value`: its leaves are numbers, no rows of states or inputs."""
    return all(leaf.args or leaf.is_uniform for leaf in reachable([value]))


class _DerivativeCell(Cell):
    """A cell whose states are the derivatives of a step of `cell`; tracing it shows which are constant."""

    cell: Cell

    def __init__(
        self, cell: Cell, over_step: list[Pair], same_step: list[Pair], between_components: list[Pair]
    ) -> None:
        nn.Module.__init__(self)
        self.cell, self.over_step, self.same_step = cell, over_step, same_step
        self.between_components = between_components
        self._create_cache()

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The derivatives in the order of :meth:`state_names`, then the next states of `cell`."""
        previous = states[len(self.over_step) + len(self.same_step) :]
        next_states, over_step = step_derivatives(self.cell, (input_, *previous), self.over_step)
        same_step = same_step_derivatives(next_states, self.same_step, self.between_components)
        derivatives = [over_step[pair] for pair in self.over_step]
        derivatives += [same_step[pair] for pair in self.same_step]
        return (*derivatives, *(state.detach() for state in next_states))

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # derivatives, then states of `cell`
        """A name for each derivative, then the names of the states of `cell`."""
        return (
            *(f"by_step_{i}_{j - INPUT}" for i, j in self.over_step),
            *(f"within_{i}_{j}" for i, j in self.same_step),
            *self.cell.state_names(),
        )
