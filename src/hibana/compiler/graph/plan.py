"""The plan of a step: which values the forward pass stores, as bits or numbers, for the backward pass.

The backward pass needs some values of the forward pass. The forward pass stores each of them at every step,
as a *residual*, or the backward pass computes it again from residuals of the same step or the step before.
The plan is the cheapest choice (:mod:`hibana.compiler.graph.residuals`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hibana.compiler.graph.analysis import evaluation_order, reachable, users_of
from hibana.compiler.graph.residuals import cheapest_residuals, cost_in_bits
from hibana.compiler.graph.step import Step, Value

Gate = tuple[Value, int | None]
"""A boolean and None: a value of the backward pass has no effect on neurons where the boolean is false.
Or such a boolean of the step before, and the index of the state whose gradient it masks there."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the forward pass stores at each step, and what the backward pass reads."""

    residuals: tuple[Value, ...]
    """The stored values: booleans as bits, the ``input`` as the input itself."""
    before: tuple[int, ...]
    """Previous states that the backward pass uses, computed from the residuals of the step before."""
    first: tuple[int, ...]
    """Initial states that the backward pass reads: those of `before`, and operands of matrix products."""
    support: Value | None
    """The residual outside which the gradient of the output has no effect; or None."""
    support_is_spikes: bool
    """Whether `support` is the boolean that the step emits as 1 or 0."""

    @cached_property
    def reads_input(self) -> bool:
        """Whether the input itself is a residual."""
        return any(value.is_input for value in self.residuals)

    @cached_property
    def stored(self) -> tuple[Value, ...]:
        """The residuals that have a tensor of their own: all but the input."""
        return tuple(value for value in self.residuals if not value.is_input)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The kernels' arguments for the tensors of `stored`."""
        return tuple(f"residual{i}_all" for i, value in enumerate(self.residuals) if not value.is_input)

    @cached_property
    def support_at(self) -> int | None:
        """The index in :attr:`stored` of the boolean that masks the output's gradient; or None."""
        return None if self.support is None else self.stored.index(self.support)

    def bits(self, number_bits: int = 32) -> int:
        """Bits stored per neuron and step."""
        return sum(cost_in_bits(value, number_bits) for value in self.residuals)


def make_plan(step: Step, required: Sequence[Value] = ()) -> Plan:
    """Chooses the values that the forward pass of `step` stores for the backward pass, at least cost.

    The choice contains the `required` values.
    """
    roots = gradients(step)
    residuals = cheapest_residuals(step, roots, required)
    support = state_gates(step).get(len(step.nexts) - 1)
    if support is not None and support not in residuals:
        residuals = (*residuals, support)
    read = evaluation_order(roots, set(residuals))
    before = tuple(sorted({value.data for value in read if value.is_previous}))
    multiplied = {side.data for side in step.sides if side.is_previous}
    support_is_spikes = support is not None and support is step.spikes
    return Plan(residuals, before, tuple(sorted({*before, *multiplied})), support, support_is_spikes)


def gradients(step: Step) -> list[Value]:
    """All gradients that the backward pass of `step` computes, also those in outer products for matrices."""
    grads = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    return grads + [side for side in step.sides if has_gradient(side)]


def has_gradient(value: Value) -> bool:
    """Whether `value` depends on a gradient of a state."""
    return any(other.is_gradient for other in reachable([value]))


def passes_gradient(step: Step) -> bool:
    """Whether the output's gradient reaches the input or a tensor of the cell, at this or an earlier step."""
    reaching: set[int] = set()  # indices of the states whose later gradient reaches them
    roots = [root for root in (step.grad_input, *step.grad_sums, *step.sides) if root is not None]
    while roots:
        states = {v.data for v in reachable(roots) if v.is_gradient} - reaching
        reaching |= states
        before = (step.grad_states[state] for state in states)
        roots = [root for root in before if root is not None]
    return len(step.nexts) - 1 in reaching  # the output is the last state


def state_gates(step: Step) -> dict[int, Value]:
    """By index of a state: a boolean of the step that masks the gradient of the state.

    Where the boolean is false, the gradient has no effect in the step. States without such a boolean are
    missing.
    """
    gates = {value.data: gate for value, gate in gates_of(step, {}).items() if value.is_gradient}
    return {state: gate[0] for state, gate in gates.items() if gate is not None}


def gates_of(step: Step, earlier: Mapping[int, Value]) -> dict[Value, Gate | None]:
    """The gate of each value in the backward pass of `step`; None for values without a gate.

    A gate is a boolean, such as "the neuron spiked", that depends on no gradient; where it is false, the
    value has no effect on any result of the pass. The gate of a state's gradient is one of the step before,
    which `earlier` contains by index of the state. Other results have no gate. Any other value has a gate if
    all its uses have the same one.
    """
    roots = gradients(step)
    order = reachable(roots)
    users = users_of(order)
    gates: dict[Value, Gate | None] = {}
    for value in reversed(order):
        uses = {_gate_of_use(value, user, gates[user]) for user in users.get(value, ())}
        states = [i for i, grad in enumerate(step.grad_states) if grad is value]
        uses |= {(earlier[i], i) if i in earlier else None for i in states}
        if value in (step.grad_input, *step.grad_sums, *step.sides):
            uses.add(None)
        gate = uses.pop() if len(uses) == 1 else None
        gates[value] = None if gate is None or has_gradient(gate[0]) else gate
    return gates


def _gate_of_use(value: Value, user: Value, user_gate: Gate | None) -> Gate | None:
    """A boolean outside which `value` has no effect as an argument of the operation `user`, or None.

    `user_gate` is the same for the result of `user`. ``(boolean, None)`` is a boolean of this step.
    """
    if value in user.args[1:2] and user.gate is not None:
        return user.gate, None
    if user.operation is None:
        return None
    if user_gate is not None and (user.operation.linear or user.operation.boolean):
        return user_gate
    factors = [argument for argument in user.args if argument is not value]
    if value is user.gate:  # a choice between a product and zero has no effect where the product is zero
        factors = factors[:1]
    elif not user.operation.zero_at_zero:
        return None
    mask = zero_outside(factors[0]) if factors else None
    return None if mask is None else (mask, None)


def zero_outside(factor: Value) -> Value | None:
    """A boolean value such that `factor` is zero wherever it is false; None if none is known."""
    waiting = [factor]
    while waiting:
        value = waiting.pop()
        if value.gate is not None:
            return value.gate
        if value.operation is not None and value.operation.zero_at_zero:
            waiting += reversed(value.args)
    return None
