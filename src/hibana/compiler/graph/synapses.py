"""The operands over time of a step's matrix products, and the masks of their gradients.

The gradient of a matrix is one product over the whole sequence, of the gradients at the product and of its
operands, which must be residuals of the step or of the one before. The gradient of spikes is multiplied by a
surrogate's derivative next: outside its mask it need not be computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from hibana.compiler.graph.analysis import Rewriting, reachable, users_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import gate_of, gradients, has_gradient, zero_outside
from hibana.compiler.graph.step import Step, Value


class Operand(NamedTuple):
    """The operand of a matrix product at a step."""

    residual: Value
    """The value to keep: a truth value, a number or the input."""
    state: int | None
    """If the operand is a previous state, which one: the residual is then of the step before."""
    gradient: Value
    """The gradient at the product."""
    is_left: bool
    """Whether the operand is the left of the pair."""


def operands(step: Step) -> tuple[Operand, ...]:
    """For each pair of ``step.outer``, its operand.

    Raises:
        Unsupported: if neither side is a gradient, or the operand is the same number everywhere.
    """
    return tuple(_operand(step, pair) for pair in step.outer)


def _operand(step: Step, pair: tuple[Value, Value]) -> Operand:
    is_left = has_gradient(pair[1])
    if has_gradient(pair[0]) == is_left:
        raise Unsupported("a product of neurons with one another, in the gradient of a matrix")
    value, gradient = pair if is_left else pair[::-1]
    state = int(value.data) if value.is_previous else None
    if state is not None:
        value = step.nexts[state]
    value = value.as_boolean or value
    if value.is_previous or value.is_draw or value.is_available:
        raise Unsupported(f"a matrix is multiplied with a {value.op} that no step computes")
    return Operand(value, state, gradient, is_left)


def with_computed_operands(step: Step) -> Step:
    """`step` with states that it passes on unchanged multiplied by 1 if a matrix multiplies them.

    The operand of a matrix is a residual, which a step must compute; the product with 1 is the same number.
    """
    multiplied = {int(side.data) for side in step.sides if side.is_previous}
    nexts = list(step.nexts)
    for i in multiplied:
        if nexts[i].is_previous:
            nexts[i] = Value("mul", (nexts[i], Value("number", data=1)))
    return replace(step, nexts=tuple(nexts))


def required_residuals(step: Step) -> list[Value]:
    """The values that products need as residuals whatever the plan: operands and masks."""
    if not step.matrices:
        return []
    gates = [gate for gate, _ in _gates(step).values()]
    return list(dict.fromkeys([*(o.residual for o in operands(step)), *gates]))


def with_masks(step: Step) -> tuple[Step, dict[int, Value]]:
    """`step` with masks as second arguments of its gradients' products; by state, masks a step earlier.

    A mask is a truth value of this step, or a leaf ``gate`` with the number of a state: what the mask of that
    state was a step earlier. A product without one has one argument.
    """
    found = _gates(step)
    masks = {p: gate if state is None else Value("gate", data=state) for p, (gate, state) in found.items()}
    masking = _Masking(masks)
    outer = [
        (left, masking.of(right)) if o.is_left else (masking.of(left), right)
        for o, (left, right) in zip(operands(step), step.outer, strict=True)
    ]
    earlier = {state: gate for gate, state in found.values() if state is not None}
    return step.with_gradients(masking.of, outer), earlier


class _Masking(Rewriting):
    """Adds a mask of the neurons whose result is needed to each product that has one."""

    def __init__(self, masks: Mapping[Value, Value]) -> None:
        super().__init__()
        self.masks = masks

    def product(self, value: Value, args: list[Value]) -> Value:
        mask = self.masks.get(value)
        return super().product(value, args if mask is None else [*args, mask])


def _gates(step: Step) -> dict[Value, tuple[Value, int | None]]:
    """For each product of a gradient that has a mask: the mask, and the state that it is of, or None."""
    roots = gradients(step)
    users = users_of(reachable(roots))
    of_state = {i: gate_of(step, i) for i in range(len(step.nexts))}
    forward = set(reachable(step.nexts))
    found = {}
    for product in reachable(roots):
        if product.is_product and product not in forward and has_gradient(product):
            gates = set(_matters(product, step, users, of_state))
            gate, state = gates.pop() if len(gates) == 1 else (None, None)
            if gate is not None and not has_gradient(gate):
                found[product] = gate, state
    return found


def _matters(
    value: Value, step: Step, users: Mapping[Value, list[Value]], of_state: Mapping[int, Value | None]
) -> Iterator[tuple[Value | None, int | None]]:
    """For each use of the gradient `value`: the mask it is multiplied with, and the state that is of.

    The mask is a truth value, or None where all of `value` is used; the state is None within the step.
    """
    if value is step.grad_input or value in step.grad_sums or any(value in pair for pair in step.outer):
        yield None, None
    for i, grad in enumerate(step.grad_states):
        if value is grad:
            yield of_state[i], i
    for user in users.get(value, []):
        row = user.operation
        factors = [argument for argument in user.args if argument is not value]
        if row is None or not row.linear:
            yield None, None
        elif row.zero_at_zero and factors and (gate := zero_outside(factors[0])) is not None:
            yield gate, None
        else:
            yield from _matters(user, step, users, of_state)
