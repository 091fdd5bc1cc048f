"""Affine forms of a step: how a step without input and without a spike depends on the states before it.

Most steps are not affine, but many are while some conditions keep the value that they have at rest: the
spike's condition is false, a clamp does not act, a counter is at zero. Each such condition on an affine form
becomes a *guard* ``l x + d <= 0`` on the states x before the step, and each form lists its guards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.graph.analysis import Analysis, reachable
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.step import Step, Value

__all__ = ["Affine", "Flag", "Form", "Guard", "NotAffine", "numeric_dependents"]

Indices = frozenset[int]
"""Indices of states or of guards."""

BOUNDARY = 1e-14
"""Largest relative difference of the coefficients of two branches that agree where a condition changes."""


class NotAffine(Unsupported):
    """An operation that is affine only if all states of one of `sets` are constant."""

    def __init__(self, operation: str, sets: Sequence[Indices]) -> None:
        super().__init__(f"the step is not affine: {operation}")
        self.operation, self.sets = operation, sets


@dataclass(frozen=True, eq=False)
class Form:
    """A number that is affine in the states before the step while its guards hold."""

    rows: Tensor
    """The factors of the states, then the constant, of each neuron: ``[neurons, states + 1]``, float64."""
    guards: Indices = frozenset()

    @property
    def states(self) -> Indices:
        """The states that it depends on."""
        return frozenset(self.rows[:, :-1].any(0).nonzero().flatten().tolist())


@dataclass(frozen=True, eq=False)
class Flag:
    """A boolean of each neuron, ``[neurons]``, while its guards hold."""

    value: Tensor
    guards: Indices = frozenset()


@dataclass(frozen=True, eq=False)
class Guard:
    """A condition ``rows · (x, 1) <= 0`` on the states x before the step, or ``< 0`` where it is strict."""

    rows: Tensor
    """As those of a :class:`Form`."""
    strict: Tensor
    """Whether equality violates it, ``[neurons]``."""
    continuous: bool = False
    """Whether the result is the same if it is violated slightly, as that of a clamp."""


class Affine(Analysis[Form | Flag]):
    """The affine forms of the values of `step` without a spike before.

    Args:
        step: the traced step, in float64.
        parameters: its parameters, ``[neurons]`` each.
        input_: the constant input, ``[neurons]``.
        fixed: values of the states that are constant, by their index.
        rest: the numbers and booleans of all values at rest, which choose the branches.

    Raises:
        NotAffine: if the step is affine only with more `fixed` states.
        Unsupported: if the step draws random numbers or multiplies by a matrix.
    """

    def __init__(
        self,
        step: Step,
        parameters: Sequence[Tensor],
        input_: Tensor,
        fixed: Mapping[int, Tensor],
        rest: Mapping[Value, Tensor],
    ) -> None:
        super().__init__()
        self.step, self.parameters, self.input, self.fixed, self.rest = step, parameters, input_, fixed, rest
        self.neurons, self.states = len(input_), len(step.states)
        self.guards: list[Guard] = []
        """All guards; a form names them by their index."""

    def on_input(self, value: Value) -> Form:
        """The constant input."""
        return self._constant(self.input)

    def on_number(self, value: Value) -> Form:
        """A number."""
        return self._constant(float(value.data))

    def on_constant(self, value: Value) -> Form:
        """A constant of the step."""
        return self._constant(self.step.constants[value.data])

    def on_parameter(self, value: Value) -> Form:
        """A parameter of the step."""
        return self._constant(self.parameters[value.data])

    def on_previous(self, value: Value) -> Form:
        """A state before the step: constant if it is fixed, and 0 if it is the last one, the spike."""
        if value.data == self.states - 1 or value.data in self.fixed:
            return self._constant(self.fixed.get(value.data, 0.0))
        form = self._constant(0.0)
        form.rows[:, value.data] = 1
        return form

    def leaf(self, value: Value) -> Form:
        """Raises Unsupported: other leaves are random numbers."""
        raise Unsupported("the step draws random numbers")

    def product(self, value: Value, args: list[Form | Flag]) -> Form:
        """Raises Unsupported."""
        raise Unsupported("the step multiplies states by a matrix")

    def operation(self, value: Value, row: Operation, args: list[Form | Flag]) -> Form | Flag:
        """The form or flag of an operation."""
        name, guards = row.name, frozenset[int]().union(*(arg.guards for arg in args))
        forms = [arg for arg in args if isinstance(arg, Form)]
        if name == "where":
            return self._where(args)
        if name in ("and", "or"):
            for arg in sorted(args, key=lambda arg: len(arg.guards)):
                if isinstance(arg, Flag) and bool((arg.value == (name == "or")).all()):
                    return arg  # decides whatever the other argument is
        if name == "mul":
            for form in forms:
                if not form.rows.any():
                    return form  # zero whatever the other factor is
        if not any(form.states for form in forms):
            return self._computed(row, args, guards)
        if name in ("gt", "ge", "lt", "le", "eq", "ne", "to_bool"):
            flag = self._compared(value, name, forms, guards)
            if flag is not None:
                return flag
        elif name in ("maximum", "minimum", "abs"):
            return self._extreme(value, name, forms, guards)
        elif (rows := self._combined(name, forms)) is not None:
            return Form(rows, guards)
        states = [form.states for form in forms if form.states]
        raise NotAffine(name, states if name in ("mul", "fma") else [frozenset[int]().union(*states)])

    def _constant(self, numbers: Tensor | float) -> Form:
        """`numbers`, ``[neurons]`` or a single one, as a form."""
        rows = torch.zeros(self.neurons, self.states + 1, dtype=torch.float64, device="cpu")
        rows[:, -1] = numbers
        return Form(rows)

    def _at_rest(self, value: Value) -> Tensor:
        """`value` at rest, ``[neurons]``."""
        return self.rest[value].flatten().expand(self.neurons)

    def _guarded(self, rows: Tensor, strict: Tensor | None) -> Indices:
        """The index of a new guard; `strict` is None if the result is continuous where it changes."""
        flags = torch.zeros(self.neurons, dtype=torch.bool, device="cpu") if strict is None else strict
        self.guards.append(Guard(rows, flags, continuous=strict is None))
        return frozenset([len(self.guards) - 1])

    def _computed(self, row: Operation, args: list[Form | Flag], guards: Indices) -> Form | Flag:
        """An operation on constants, as PyTorch computes it."""
        numbers = [arg.value if isinstance(arg, Flag) else arg.rows[:, -1].contiguous() for arg in args]
        result = row.function(*numbers)
        if row.boolean:
            return Flag(result.expand(self.neurons), guards)
        return Form(self._constant(result.double()).rows, guards)

    def _combined(self, name: str, forms: list[Form]) -> Tensor | None:
        """The rows of a sum, a difference, a product or a quotient; None if it is not affine."""
        rows = [form.rows for form in forms]
        if name == "neg":
            return -rows[0]
        if name in ("add", "sub"):
            return rows[0] + rows[1] if name == "add" else rows[0] - rows[1]
        if name == "div" and not forms[1].states:
            return rows[0] / rows[1][:, -1:]
        if name in ("mul", "fma") and not (forms[0].states and forms[1].states):
            x, y = (rows[0], rows[1]) if forms[0].states else (rows[1], rows[0])
            product = x * y[:, -1:]
            return product if name == "mul" else product + rows[2]
        return None

    def _compared(self, value: Value, name: str, forms: list[Form], guards: Indices) -> Flag | None:
        """A comparison that keeps its value at rest; None if equal numbers may become unequal."""
        difference = forms[0].rows - forms[1].rows if len(forms) == 2 else forms[0].rows
        if name in ("gt", "ge", "lt", "le"):
            holds = self._at_rest(value)
            less = difference if name in ("lt", "le") else -difference  # <= 0 or < 0 where it holds
            strict = holds ^ (name in ("ge", "le"))
            return Flag(holds, guards | self._guarded(torch.where(holds[:, None], less, -less), strict))
        first, *others = (self._at_rest(arg) for arg in value.args)
        gap = first.double() - (others[0].double() if others else 0)
        if not bool((gap != 0).all()):
            return None
        rows = torch.where((gap > 0)[:, None], -difference, difference)
        holds = torch.full((self.neurons,), name != "eq", dtype=torch.bool, device="cpu")
        return Flag(holds, guards | self._guarded(rows, torch.ones_like(holds)))

    def _extreme(self, value: Value, name: str, forms: list[Form], guards: Indices) -> Form:
        """A maximum, minimum or absolute value, which keeps the branch that it takes at rest."""
        first, rest = forms[0].rows, self._at_rest(value.args[0])
        if name == "abs":
            second, takes_first = -first, rest >= 0
        else:
            second, other = forms[1].rows, self._at_rest(value.args[1])
            takes_first = rest >= other if name == "maximum" else rest < other
        less = first - second if name == "minimum" else second - first  # <= 0 where the first is the result
        rows = torch.where(takes_first[:, None], less, -less)
        branch = torch.where(takes_first[:, None], first, second)
        return Form(branch, guards | self._guarded(rows, None))

    def _where(self, args: list[Form | Flag]) -> Form:
        """A choice, which keeps the branch that it takes at rest."""
        flag, first, second = args
        assert isinstance(flag, Flag)
        one, other = (
            Form(self._constant(arg.value.double()).rows, arg.guards) if isinstance(arg, Flag) else arg
            for arg in (first, second)
        )
        if torch.equal(one.rows, other.rows):
            return Form(one.rows, one.guards | other.guards)  # the condition has no effect
        guards = flag.guards
        if len(guards) == 1:
            guard, difference = self.guards[next(iter(guards))].rows, one.rows - other.rows
            norm = (guard * guard).sum(1, keepdim=True).clamp(min=1e-300)
            ratio = (difference * guard).sum(1, keepdim=True) / norm
            if torch.allclose(difference, ratio * guard, rtol=BOUNDARY, atol=0):  # equal where it changes
                guards = self._guarded(guard, None)
        guards |= one.guards if flag.value.any() else frozenset()
        guards |= frozenset() if flag.value.all() else other.guards
        return Form(torch.where(flag.value[:, None], one.rows, other.rows), guards)


def numeric_dependents(step: Step) -> Indices:
    """The states that depend on the input other than by a boolean, directly or through other such states."""
    dependents: Indices = frozenset()
    while True:
        reads: dict[Value, bool] = {}
        """Whether a value is a number that depends on the input or a state in `dependents`."""
        for value in reachable(step.nexts):
            is_source = value.is_input or (value.is_previous and value.data in dependents)
            reads[value] = is_source or (not value.boolean and any(reads[arg] for arg in value.args))
        larger = frozenset(i for i, value in enumerate(step.nexts) if reads[value])
        if larger == dependents:
            return dependents
        dependents = larger
