"""Derivatives of one step of a cell: which there are, which are constants, and how many numbers a trace has.

The trace of a synapse has one number for each *component*: a state that the input reaches and that is not a
function of other states of the same step. LIF has one, the potential; the spike is a function of it.
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

__all__ = ["INPUT", "FollowedStep", "Recursion", "Structure", "couplings", "derivatives"]

INPUT = -1
"""Index of a step's input, where states have 0, 1, ..."""

Pair = tuple[int, int]
"""A state after the step, and what it is differentiated with respect to."""


class Recursion(NamedTuple):
    """The recursion of a trace, ``e_t = A e_(t-1) + k x_t``, that is the same for all neurons and steps."""

    transition: Tensor
    """A, ``[components, components]``."""
    to_input: Tensor
    """k, ``[components]``."""


@dataclass(frozen=True)
class Structure:
    """Which derivatives a step has; each with whether it is one constant for all neurons and steps."""

    over_step: dict[Pair, bool]
    """Of the states after the step by :data:`INPUT` and by the states before."""
    within: dict[Pair, bool]
    """Of states that are functions of other states after the step, by each of these alone."""
    chained: tuple[Pair, ...]
    """Of these by one another: a component may be a function of another one of the same step."""
    components: tuple[int, ...]
    states: int
    """How many states there are."""

    def recursion(self, cell: Cell, like: Tensor) -> Recursion | None:
        """The recursion of the trace with the cell's current values; None if it differs between neurons.

        Args:
            cell: the cell of this structure.
            like: one step of its input, ``[batch, ...]``.
        """
        place = {state: i for i, state in enumerate(self.components)}
        sources = {INPUT, *place, *(state for state, _ in self.within)}
        over = [pair for pair in self.over_step if pair[0] in place and pair[1] in sources]
        inner = [pair for pair in self.within if pair[1] in place and any(pair[0] == j for _, j in over)]
        if not all(self.over_step[pair] for pair in over) or not all(self.within[pair] for pair in inner):
            return None
        nexts, over_values = derivatives(cell, [_one_sample(like)] * (1 + self.states), over)
        by_argument = like.new_zeros(self.states, 1 + self.states)
        for (i, j), value in over_values.items():
            by_argument[i, j - INPUT] = value.flatten()[0]
        by_component = like.new_zeros(self.states, len(place))
        by_component[list(place), list(place.values())] = 1
        for (i, j), value in couplings(nexts, inner, self.chained).items():
            by_component[i, place[j]] = value.flatten()[0]
        rows = by_argument[list(place)]
        return Recursion(rows[:, 1:] @ by_component, rows[:, 0])

    def of_components(
        self, of_states: Sequence[Tensor | None], coupling: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of the components, from those of all states.

        Args:
            of_states: the gradient of each state.
            coupling: the derivatives of :attr:`within` in the step of these states, none at rest.
        """
        found = {i: of_states[i] for i in self.components}
        for (state, i), factor in zip(self.within, coupling, strict=False):
            grad, before = of_states[state], found[i]
            if grad is not None:
                found[i] = grad * factor if before is None else before + grad * factor
        return list(found.values())


@final
class FollowedStep:
    """The structure of a cell's step and the recursion of its traces, computed again when the cell changes.

    Args:
        cell: the cell.
        inner: the cell within it that may change; `cell` itself by default.
    """

    def __init__(self, cell: Cell, inner: Cell | None = None) -> None:
        self.cell, self.inner = cell, cell if inner is None else inner
        self.key: Any = None
        self._structure: Structure | None = None
        self._recursion: Recursion | None = None
        self._is_current = False

    def structure(self, like: Tensor) -> Structure:
        """The structure for steps of input like `like`; raises Unsupported as :func:`structure_of` does."""
        key = dependencies_of(self.inner).key, like.shape[1:], like.dtype, like.device
        if self._structure is None or self.key != key:
            self._structure, self.key, self._is_current = structure_of(self.cell, like), key, False
        return self._structure

    def recursion(self, like: Tensor) -> Recursion | None:
        """As :meth:`Structure.recursion`."""
        structure = self.structure(like)
        if not self._is_current:
            self._recursion = structure.recursion(self.cell, like)
            self._is_current = not tensors_of(self.inner)  # whose values change without notice
        return self._recursion


def structure_of(cell: Cell, like: Tensor) -> Structure:
    """The structure of a step of `cell` on inputs like `like`, ``[batch, ...]``.

    Raises:
        Unsupported: if the step can't be traced, or multiplies neurons by matrices.
    """
    if trace(cell, like.shape, like.dtype).matrices:
        raise Unsupported("the step multiplies its states by matrices; use hibana.Recurrent for these")
    with torch.enable_grad():
        leaves = [_one_sample(like).requires_grad_() for _ in range(1 + len(cell.state_names()))]
        nexts = cell(*leaves)
    over = [
        (i, j - 1)
        for i, state in enumerate(nexts)
        if state.requires_grad
        for j, found in enumerate(_gradients(state, leaves))
        if found is not None
    ]
    within, chained = _within(nexts, leaves)
    reached = {INPUT}
    for _ in nexts:
        reached |= {i for i, j in over if j in reached}
    dependent = {state for state, _ in within}
    components = tuple(i for i in range(len(nexts)) if i in reached and i not in dependent)
    inner = [(i, j) for i, j in within if j in components]
    values = trace(_Derivatives(cell, over, inner, chained), like.shape, like.dtype).nexts
    constant = [_is_constant(value) for value in values]
    return Structure(
        dict(zip(over, constant, strict=False)),
        dict(zip(inner, constant[len(over) :], strict=False)),
        tuple(chained),
        components,
        len(nexts),
    )


def derivatives(
    cell: Cell, arguments: Sequence[Tensor], over_step: Iterable[Pair]
) -> tuple[Sequence[Tensor], dict[Pair, Tensor]]:
    """The states after a step, with their graph, and derivatives of them, neuron by neuron.

    Args:
        cell: one step.
        arguments: its input, and the states before.
        over_step: pairs as in :attr:`Structure.over_step`.
    """
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in arguments]
        nexts: Sequence[Tensor] = cell(*leaves)
    found = _values(nexts, leaves, [(i, j - INPUT) for i, j in over_step])
    return nexts, {(i, j + INPUT): value for (i, j), value in found.items()}


def couplings(nexts: Sequence[Tensor], within: Iterable[Pair], chained: Sequence[Pair]) -> dict[Pair, Tensor]:
    """The derivatives of :attr:`Structure.within`, from the states after a step with their graph."""
    within = list(within)
    total = _values(nexts, nexts, [*within, *(chained if within else ())])
    found: dict[Pair, Tensor] = {}
    for state, j in sorted(within, key=lambda pair: -sum(i == pair[1] for i, _ in chained)):
        value = total[state, j]
        for i, other in chained:  # less what goes through other components
            if other == j and (state, i) in found:
                value = value - found[state, i] * total[i, j]
        found[state, j] = value
    return found


def _values(nexts: Sequence[Tensor], sources: Sequence[Tensor], pairs: Iterable[Pair]) -> dict[Pair, Tensor]:
    """The derivative of each pair: of one of `nexts` by one of `sources`, which it depends on."""
    wanted: dict[int, list[int]] = {}
    for i, j in pairs:
        wanted.setdefault(i, []).append(j)
    return {
        (i, j): value
        for i, indices in wanted.items()
        for j, value in zip(indices, _gradients(nexts[i], [sources[j] for j in indices]), strict=True)
    }


def _gradients(state: Tensor, sources: Sequence[Tensor]) -> Any:
    ones = torch.ones_like(state).detach()
    return run_backward((state,), (ones,), tuple(sources), keep_graph=True)


def _within(nexts: Sequence[Tensor], arguments: Sequence[Tensor]) -> tuple[list[Pair], list[Pair]]:
    """The pairs of :attr:`Structure.within` and of :attr:`Structure.chained`, of all states."""
    within: list[Pair] = []
    for i, state in enumerate(nexts):
        others = {
            other.grad_fn: j
            for j, other in reversed([*enumerate(nexts)])
            if j != i and other.grad_fn is not None and all(j != dependent for dependent, _ in within)
            if other.grad_fn is not state.grad_fn or j < i
        }
        passed = _first_passed(state, {*others}, arguments) if state.requires_grad else None
        if passed is not None:
            within += [(i, others[node]) for node in passed]
    sources = sorted({j for _, j in within})
    chained = [
        (i, j)
        for i in sources
        for j, value in zip(sources, _gradients(nexts[i], [nexts[j] for j in sources]), strict=True)
        if j != i and value is not None
    ]
    return within, chained


def _first_passed(state: Tensor, nodes: set[Any], arguments: Sequence[Tensor]) -> set[Any] | None:
    """Those of `nodes` that the graph of `state` meets first; None if a path reaches one of `arguments`."""
    passed, seen, waiting = set(), set(), [state.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or any(getattr(node, "variable", None) is one for one in arguments):
            return None
        if node in nodes:
            passed.add(node)
        elif node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return passed


def _one_sample(like: Tensor) -> Tensor:
    return like.new_zeros(1, *like.shape[1:])


def _is_constant(value: Value) -> bool:
    return all(leaf.args or leaf.is_uniform for leaf in reachable([value]))


class _Derivatives(Cell):
    """A step whose states are derivatives of that of `cell`, for a trace of them."""

    cell: Cell

    def __init__(self, cell: Cell, over_step: list[Pair], within: list[Pair], chained: list[Pair]) -> None:
        nn.Module.__init__(self)
        self.cell, self.over_step, self.within, self.chained = cell, over_step, within, chained
        self._enter()

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        before = carried[len(self.over_step) + len(self.within) :]
        nexts, over = derivatives(self.cell, (input_, *before), self.over_step)
        inner = couplings(nexts, self.within, self.chained)
        ends = [*(over[pair] for pair in self.over_step), *(inner[pair] for pair in self.within)]
        return (*ends, *(one.detach() for one in nexts))

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # of the derivatives, then of the cell
        return (
            *(f"by_step_{i}_{j - INPUT}" for i, j in self.over_step),
            *(f"within_{i}_{j}" for i, j in self.within),
            *self.cell.state_names(),
        )
