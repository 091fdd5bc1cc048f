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
        outputs = [g for g in (self.step.grad_input, *self.step.grad_states) if g is not None]
        self.cut = smallest_cut(self.gradients, outputs)
        self.values = _linear_in(self.gradients, [*outputs, *self.step.grad_sums])
        """Those that a gradient is a part of, each after its arguments."""

    def at(self, cell: Cell, input_: Tensor, previous: Sequence[Tensor]) -> Linearised:
        """The step linearised at each of many: `input_` and `previous` states ``[..., batch, neurons]``."""
        known = self._forward(cell, input_, previous)
        before = self._coefficients(self.gradients, [*self.cut, *self.step.grad_sums], known)
        after = self._coefficients(self.cut, [self.step.grad_input, *self.step.grad_states], known)
        count = len(self.cut)
        leaf_of = {int(leaf.data): i for i, leaf in enumerate(self.gradients)}
        absent: list[Coefficient] = [None] * len(before)
        rows = [
            [row[leaf_of[i]] for row in before] if i in leaf_of else absent
            for i in range(len(self.step.states))
        ]
        return Linearised(
            [row[:count] for row in rows],
            after[0],
            [[row[j] for row in after[1:]] for j in range(count)],
            [row[count:] for row in rows],
        )

    def _forward(self, cell: Cell, input_: Tensor, previous: Sequence[Tensor]) -> dict[Value, Tensor]:
        """The values of the step that gradients are multiplied by."""
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

        carrying = {*self.values}
        factors = list(dict.fromkeys(a for v in self.values for a in v.args if a not in carrying))
        return dict(zip(factors, in_torch(factors, {}, leaf, self.dtype), strict=True))

    def _coefficients(
        self, sources: Sequence[Value], roots: Sequence[Value | None], known: dict[Value, Tensor]
    ) -> list[list[Coefficient]]:
        """For each of `roots`, its coefficient of each of `sources`."""
        one = torch.ones((), dtype=self.dtype, device=next(iter(known.values())).device if known else None)
        zero: list[Coefficient] = [None] * len(sources)
        forms: dict[Value, list[Coefficient]] = {
            source: [one if i == j else None for j in range(len(sources))] for i, source in enumerate(sources)
        }
        for value in self.values:
            if value not in forms and value.args and any(a in forms for a in value.args):
                forms[value] = _form(value, forms, known, zero)
        return [zero if root is None else forms.get(root, zero) for root in roots]


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
