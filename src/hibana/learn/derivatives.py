"""The derivatives of one step of a cell, read from its traced graph: what traces are made of.

The graph of a step gives its gradients as expressions that are linear in the gradients ``g`` of the states
after the step. They depend on ``g`` through few values ``d``, a smallest cut of the graph (one for LIF,
whose spike is a function of its potential): so ``d = C^T g``, and the gradients of the input and of the
states before the step are ``kappa^T d`` and ``S^T d``. A trace needs as many numbers a synapse as there are
``d``. Nothing here knows of rules or layers.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.analysis.eager import Eager
from hibana.compiler.graph.analysis import Analysis, dependents, reachable
from hibana.compiler.graph.cut import INFINITE, Network
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.learn.coefficients import Coefficient

__all__ = ["Linearised", "StepDerivatives", "smallest_cut"]


@dataclass(frozen=True)
class Linearised:
    """A step linearised where it was taken: ``d = C^T g``, gradients ``kappa^T d``, ``S^T d`` and ``P^T g``.

    ``g`` are the gradients of the states after the step, ``d`` the values of the cut.
    """

    to_cut: list[list[Coefficient]]
    """C: of each state after the step, of each value of the cut."""
    to_input: list[Coefficient]
    """kappa: of each value of the cut."""
    to_states: list[list[Coefficient]]
    """S: of each value of the cut, of each state before the step."""
    to_sums: list[list[Coefficient]]
    """P: of each state after the step, of each sum that gradients of the cell's tensors are made of."""


class StepDerivatives:
    """The derivatives of a step of `cell` on an input of `shape` and `dtype`.

    Raises:
        Unsupported: if the step can't be followed, or multiplies neurons by matrices.
    """

    def __init__(self, cell: Cell, shape: torch.Size, dtype: torch.dtype) -> None:
        self.step = trace(cell, shape, dtype)
        if self.step.matrices:
            raise Unsupported("the step multiplies its states by matrices; use hibana.Recurrent for these")
        self.dtype = dtype
        self.gradients = _gradient_leaves(self.step)
        after = [self.step.grad_input, *self.step.grad_states]
        self.cut = smallest_cut(self.gradients, [g for g in after if g is not None])
        self._to_cut = _LinearMap(self.gradients, [*self.cut, *self.step.grad_sums])
        self._from_cut = _LinearMap(self.cut, after)
        self._between_states = _LinearMap(self.cut, after[:-1])

    def at(self, cell: Cell, input_: Tensor, previous: Sequence[Tensor], *, whole: bool = True) -> Linearised:
        """The step linearised at each of many: `input_` and `previous` states ``[..., batch, neurons]``.

        Without `whole`, ``to_input`` and ``to_states`` are left empty.
        """
        maps = [self._to_cut, self._from_cut] if whole else [self._to_cut]
        before, *rest = self._forms(maps, cell, input_, previous)
        after: list[list[Coefficient]] = rest[0] if rest else [[]]
        count = len(self.cut)
        place = {int(leaf.data): i for i, leaf in enumerate(self.gradients)}
        rows: list[list[Coefficient]] = [
            [form[place[i]] if i in place else None for form in before] for i in range(len(self.step.states))
        ]
        return Linearised(
            [row[:count] for row in rows],
            after[0],
            [[form[j] for form in after[1:]] for j in range(count)] if whole else [],
            [row[count:] for row in rows],
        )

    def at_silent(
        self, cell: Cell, input_: Tensor, previous: Sequence[Tensor]
    ) -> tuple[list[Coefficient], list[list[Coefficient]]]:
        """``to_input`` and ``to_states`` of neurons that had emitted zero, without what goes through that."""
        zero = torch.zeros((), dtype=self.dtype, device=input_.device)
        (after,) = self._forms([self._between_states], cell, input_, [*previous[:-1], zero])
        return after[0], [[*(form[j] for form in after[1:]), None] for j in range(len(self.cut))]

    def _forms(
        self, maps: "list[_LinearMap]", cell: Cell, input_: Tensor, previous: Sequence[Tensor]
    ) -> list[list[list[Coefficient]]]:
        """The coefficients of each of `maps`: of each of its roots, of each of its sources."""
        tensors = tensors_of(cell).values()
        with torch.no_grad():
            parameters = self.step.prologue(*tensors) if self.step.parameters else ()

        eager = _AtState(self.step, self.dtype, input_, previous, parameters)
        unit = torch.ones((), dtype=self.dtype, device=input_.device)
        return [one.forms(eager, unit) for one in maps]


class _AtState(Eager):
    """Tensors of a step's values, given its input, the states before it, and its parameters."""

    def __init__(
        self,
        step: Step,
        dtype: torch.dtype,
        input_: Tensor,
        previous: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        super().__init__(dtype)
        self.step, self.input, self.previous, self.parameters = step, input_, previous, parameters

    def on_input(self, value: Value) -> Tensor:
        return self.input

    def on_previous(self, value: Value) -> Tensor:
        return self.previous[int(value.data)]

    def on_parameter(self, value: Value) -> Tensor:
        parameter = self.parameters[int(value.data)].to(self.dtype)
        return parameter.reshape(()) if parameter.numel() == 1 else parameter

    def on_constant(self, value: Value) -> Tensor:
        return self._number(self.step.constants[int(value.data)])

    def on_number(self, value: Value) -> Tensor:
        return self._number(float(value.data))

    def _number(self, number: float) -> Tensor:
        return torch.tensor(number, dtype=self.dtype, device=self.input.device)


class _LinearMap:
    """The map from `sources` to `roots`, which are linear in them."""

    def __init__(self, sources: Sequence[Value], roots: Sequence[Value | None]) -> None:
        self.sources, self.roots = sources, roots
        values = reachable(root for root in roots if root is not None)
        self.linear = dependents(values, sources)

    def forms(self, eager: Eager, unit: Tensor) -> list[list[Coefficient]]:
        """For each of the roots, its coefficient of each of the sources."""
        count = len(self.sources)
        units = {s: [unit if i == j else None for j in range(count)] for i, s in enumerate(self.sources)}
        linearity = _Linearity(units, self.linear, eager)
        return [[None] * count if root is None else linearity.of(root) for root in self.roots]


class _Linearity(Analysis[list[Coefficient]]):
    """Coefficients of each of some sources, for values that are linear in these."""

    def __init__(
        self, sources: dict[Value, list[Coefficient]], linear: Container[Value], eager: Eager
    ) -> None:
        super().__init__(sources)
        self.count = len(sources)
        self.linear, self.eager = linear, eager

    def leaf(self, value: Value) -> list[Coefficient]:
        return [None] * self.count

    def operation(self, value: Value, row: Operation, args: list[list[Coefficient]]) -> list[Coefficient]:
        if value not in self.linear:
            return self.leaf(value)
        carrying = {i for i, argument in enumerate(value.args) if argument in self.linear}
        together = next((each for each in row.linear if carrying <= set(each)), None)
        if together is None:
            raise Unsupported(f"a gradient goes through {value.op!r}, which is not linear here")
        fixed = {i: self.eager.of(a) for i, a in enumerate(value.args) if i not in together}
        return [self._coefficient(row, fixed, coefficients) for coefficients in zip(*args, strict=True)]

    def _coefficient(
        self, row: Operation, fixed: dict[int, Tensor], coefficients: Sequence[Coefficient]
    ) -> Coefficient:
        """The coefficient of one source: `row` of the arguments' coefficients, the others `fixed`."""
        there = [c for c in coefficients if c is not None]
        if not there:
            return None
        zero = torch.zeros((), dtype=there[0].dtype, device=there[0].device)
        args = [fixed.get(i, zero if c is None else c) for i, c in enumerate(coefficients)]
        return row.function(*args)


def _gradient_leaves(step: Step) -> list[Value]:
    roots = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    leaves = [value for value in reachable(roots) if value.is_gradient]
    return sorted(leaves, key=lambda leaf: int(leaf.data))


def smallest_cut(sources: Sequence[Value], outputs: Sequence[Value]) -> list[Value]:
    """The fewest values through which all that `outputs` are of `sources` goes, in order of evaluation."""
    values = list(dependents(reachable(outputs), sources))
    place = {value: 2 * i for i, value in enumerate(values)}
    begin, end = 2 * len(values), 2 * len(values) + 1
    network = Network(2 * len(values) + 2)
    for value in values:
        network.add(place[value], place[value] + 1, 1)
        for argument in value.args:
            if argument in place:
                network.add(place[argument] + 1, place[value], INFINITE)
    for source in sources:
        network.add(begin, place[source], INFINITE)
    for output in outputs:
        if output in place:
            network.add(place[output] + 1, end, INFINITE)
    inside = network.source_side(begin, end)
    return [value for value in values if inside[place[value]] and not inside[place[value] + 1]]
