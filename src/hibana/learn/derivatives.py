"""The derivatives of one step of a cell, read from its traced graph: what traces are made of.

The graph of a step gives its gradients as expressions that are linear in the gradients ``g`` of the states
after the step. They depend on ``g`` through few values ``d``, a smallest cut of the graph (one for LIF,
whose spike is a function of its potential): so ``d = C^T g``, and the gradients of the input and of the
states before the step are ``kappa^T d`` and ``S^T d``. A trace needs as many numbers a synapse as there are
``d``. Nothing here knows of rules or layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.eager import in_torch
from hibana.compiler.graph.cut import INFINITE, Network
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import reachable
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.learn.coefficients import Coefficient, plus, times

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

        def leaf(value: Value) -> Tensor:
            if value.op == "input":
                return input_
            if value.op == "previous":
                return previous[int(value.data)]
            if value.op == "parameter":
                found: Tensor = parameters[int(value.data)].to(self.dtype)
                return found.reshape(()) if found.numel() == 1 else found
            number = self.step.constants[int(value.data)] if value.op == "constant" else value.data
            return torch.tensor(float(number), dtype=self.dtype, device=input_.device)

        factors = list(dict.fromkeys(factor for one in maps for factor in one.factors))
        known = dict(zip(factors, in_torch(factors, {}, leaf, self.dtype), strict=True))
        unit = torch.ones((), dtype=self.dtype, device=input_.device)
        return [one.forms(known, unit) for one in maps]


class _LinearMap:
    """What `roots` are of `sources`, which they are linear in."""

    def __init__(self, sources: Sequence[Value], roots: Sequence[Value | None]) -> None:
        self.sources, self.roots = sources, roots
        first = {*sources}
        carrying = _linear_in(sources, [root for root in roots if root is not None])
        self.values = [value for value in carrying if value not in first]
        """Those that a source is a part of, each after its arguments."""
        within = {*carrying}
        self.factors = list(dict.fromkeys(a for v in self.values for a in v.args if a not in within))
        """What they are multiplied by, or choose by."""

    def forms(self, known: dict[Value, Tensor], unit: Tensor) -> list[list[Coefficient]]:
        """For each of the roots, its coefficient of each of the sources, where the factors are `known`."""
        zero: list[Coefficient] = [None] * len(self.sources)
        forms: dict[Value, list[Coefficient]] = {
            source: [unit if i == j else None for j in range(len(self.sources))]
            for i, source in enumerate(self.sources)
        }
        for value in self.values:
            forms[value] = _form(value, forms, known, zero)
        return [zero if root is None else forms.get(root, zero) for root in self.roots]


def _form(
    value: Value, forms: dict[Value, list[Coefficient]], known: dict[Value, Tensor], zero: list[Coefficient]
) -> list[Coefficient]:
    """The coefficients of `value`, which is linear in those of its arguments that are in `forms`."""
    args = [forms.get(argument, zero) for argument in value.args]
    carrying = [argument in forms for argument in value.args]
    if value.op in ("add", "sub"):
        signed = args[1] if value.op == "add" else [_negative(b) for b in args[1]]
        return [plus(a, b) for a, b in zip(args[0], signed, strict=True)]
    if value.op == "neg":
        return [_negative(a) for a in args[0]]
    if value.op == "to_float":
        return args[0]
    if value.op == "mul" and carrying.count(True) == 1:
        at = carrying.index(True)
        return [times(known[value.args[1 - at]], a) for a in args[at]]
    if value.op == "div" and carrying == [True, False]:
        return [None if a is None else a / known[value.args[1]] for a in args[0]]
    if value.op == "where" and not carrying[0]:
        condition = known[value.args[0]]
        return [_where(condition, a, b) for a, b in zip(args[1], args[2], strict=True)]
    if value.op == "fma" and carrying[:2].count(True) == 1:
        at = carrying.index(True)
        scaled = [times(known[value.args[1 - at]], a) for a in args[at]]
        return [plus(a, b) for a, b in zip(scaled, args[2], strict=True)]
    raise Unsupported(f"a gradient goes through {value.op!r}, which is not linear here")


def _negative(a: Coefficient) -> Coefficient:
    return None if a is None else -a


def _where(condition: Tensor, a: Coefficient, b: Coefficient) -> Coefficient:
    if a is None and b is None:
        return None
    some = a if a is not None else b
    assert some is not None
    zero = torch.zeros((), dtype=some.dtype, device=some.device)
    return torch.where(condition, zero if a is None else a, zero if b is None else b)


def _gradient_leaves(step: Step) -> list[Value]:
    roots = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    leaves = [value for value in reachable(roots) if value.op == "gradient"]
    return sorted(leaves, key=lambda leaf: int(leaf.data))


def _linear_in(gradients: Sequence[Value], roots: Sequence[Value]) -> list[Value]:
    """What `roots` are made of that one of `gradients` is a part of, each after its arguments."""
    carrying = dict.fromkeys(gradients)
    for value in reachable(roots):
        if any(argument in carrying for argument in value.args):
            carrying[value] = None
    return list(carrying)


def smallest_cut(sources: Sequence[Value], outputs: Sequence[Value]) -> list[Value]:
    """The fewest values through which all that `outputs` are of `sources` goes, in order of evaluation."""
    values = _linear_in(sources, outputs)
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
