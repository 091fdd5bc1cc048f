"""The plan of a step: which values the backward keeps, as bits or numbers, and which it recomputes.

A forward value that the backward uses is kept at every step, as a *residual*, or recomputed from residuals of
this step or the one before. The plan is the cheapest choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hibana.compiler.graph.analysis import evaluated, reachable, users_of
from hibana.compiler.graph.residuals import cheapest_residuals, cost_in_bits
from hibana.compiler.graph.step import Step, Value


@dataclass(frozen=True, eq=False)
class Plan:
    """What a forward keeps of each step, and what the backward reads."""

    residuals: tuple[Value, ...]
    """The values that are kept: truth values as bits, the ``input`` as the input itself."""
    before: tuple[int, ...]
    """The previous states that the backward uses, computed from the residuals of the step before."""
    first: tuple[int, ...]
    """The initial states that the backward reads: those of `before`, and operands of matrix products."""
    support: Value | None
    """The surrogate's mask (one of `residuals`): outside it the output's gradient is not used; or None."""
    spikes: Value | None
    """The truth value that is emitted as 1 or 0, if it is one of `residuals`."""

    @cached_property
    def reads_input(self) -> bool:
        """Whether the input itself is a residual."""
        return any(value.is_input for value in self.residuals)

    @cached_property
    def stored(self) -> tuple[Value, ...]:
        """The residuals besides the input, each with a tensor of its own."""
        return tuple(value for value in self.residuals if not value.is_input)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The kernels' arguments that are the tensors of `stored`."""
        return tuple(f"residual{i}_all" for i, value in enumerate(self.residuals) if not value.is_input)

    @cached_property
    def support_at(self) -> int | None:
        """The index of `support` in `stored`."""
        return None if self.support is None else self.stored.index(self.support)

    @cached_property
    def spikes_at(self) -> int | None:
        """The index of `spikes` in `stored`."""
        return None if self.spikes is None else self.stored.index(self.spikes)

    def bits(self, number_bits: int = 32) -> int:
        """Bits kept per neuron and step."""
        return sum(cost_in_bits(value, number_bits) for value in self.residuals)


def make_plan(step: Step, needed: Sequence[Value] = ()) -> Plan:
    """The cheapest plan for the backward of `step` that keeps the values `needed`."""
    roots = gradients(step)
    residuals = cheapest_residuals(step, roots, needed)
    support = gate_of(step, len(step.nexts) - 1)
    if support is not None and has_gradient(support):
        support = None
    elif support is not None and support not in residuals:
        residuals = (*residuals, support)
    before = tuple(sorted({int(v.data) for v in evaluated(roots, set(residuals)) if v.is_previous}))
    multiplied = {int(side.data) for side in step.sides if side.is_previous}
    spikes = step.spikes if step.spikes in residuals else None
    return Plan(residuals, before, tuple(sorted({*before, *multiplied})), support, spikes)


def spikes_plan(step: Step) -> Plan | None:
    """The plan of a forward without a backward that keeps the bits of its spikes; None if it emits none."""
    spikes = step.spikes
    return None if spikes is None or not spikes.args else Plan((spikes,), (), (), None, spikes)


def gradients(step: Step) -> list[Value]:
    """All that the backward of `step` computes: gradients, and the sides of ``outer`` that are gradients."""
    grads = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    return grads + [side for side in step.sides if has_gradient(side)]


def has_gradient(value: Value) -> bool:
    """Whether `value` depends on a gradient."""
    return any(other.is_gradient for other in reachable([value]))


def passes_gradient(step: Step) -> bool:
    """Whether the gradient of what `step` emits reaches its input or a tensor of the cell, at any step."""
    reaching: set[int | str] = set()  # states after the step whose gradient does
    roots = [root for root in (step.grad_input, *step.grad_sums, *step.sides) if root is not None]
    while roots:
        states = {v.data for v in reachable(roots) if v.is_gradient} - reaching
        reaching |= states
        before = (step.grad_states[int(state)] for state in states)
        roots = [root for root in before if root is not None]
    return len(step.nexts) - 1 in reaching


def gate_of(step: Step, state: int) -> Value | None:
    """The truth value outside which the gradient of a state after the step is multiplied by zero, if any."""
    roots = gradients(step)
    order = reachable(roots)
    users = users_of(order)
    gate: dict[Value, Value | None] = {}  # of each value; None if it is a result, or is used without
    for value in reversed(order):
        found = {_gate_at(value, user, gate[user]) for user in users.get(value, ())}
        gate[value] = found.pop() if len(found) == 1 and value not in roots else None
    gates = {gate[v] for v in order if v.is_gradient and v.data == state}
    return gates.pop() if len(gates) == 1 else None


def _gate_at(value: Value, user: Value, later: Value | None) -> Value | None:
    """The gate of `value` where `user` uses it, which has the gate `later`."""
    if user.operation is not None and user.operation.zero_at_zero:
        factors = [argument for argument in user.args if argument is not value]
        return later or (zero_outside(factors[0]) if factors else None)
    return user.gate if value in user.args[1:2] else None


def zero_outside(factor: Value) -> Value | None:
    """The truth value outside which `factor` is zero."""
    waiting = [factor]
    while waiting:
        value = waiting.pop()
        if value.gate is not None:
            return value.gate
        if value.operation is not None and value.operation.zero_at_zero:
            waiting += reversed(value.args)
    return None
