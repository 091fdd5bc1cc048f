"""What the backward must keep: bits, values, nothing.

A forward value that the backward uses can be kept at every step or computed again from what is kept.
The plan is the cheapest choice: a truth value costs a bit, a number its bits, and computing again a
little. The state before a step is the state after the step before, so what was kept there gives it back.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from hibana.loop.trace import Step, Value
from hibana.loop.words import CALLS

__all__ = ["Plan", "cost_in_bits", "evaluated", "make_plan", "reachable", "replayed"]

FREE = frozenset({"constant", "number", "parameter", "gradient"})
MOST_KEPT = 3
"""Sets of values up to this size are searched; beyond it, everything used is kept."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a backward keeps of each step, and what it reads from it."""

    kept: tuple[Value, ...]
    """Kept at every step; truth values as bits, the ``input`` as the input itself."""
    before: tuple[int, ...]
    """The previous states that the backward uses, computed from what was kept a step earlier."""
    support: Value | None
    """Where the gradient of what was emitted can matter (one of `kept`); None means everywhere."""
    spikes: Value | None
    """The truth value that is emitted as 1 or 0 (one of `kept`); None if it is not kept, or none is."""
    again: "Plan | None" = None
    """What a second run forward keeps, a stretch of neurons at a time, where the backward makes one."""

    @cached_property
    def reads_input(self) -> bool:
        """Whether the input itself is kept."""
        return any(value.word == "input" for value in self.kept)

    @cached_property
    def kept_values(self) -> tuple[Value, ...]:
        """What is kept besides the input: each gets a tensor of its own."""
        return tuple(value for value in self.kept if value.word != "input")

    @cached_property
    def support_at(self) -> int | None:
        """Which of `kept_values` the support is."""
        return None if self.support is None else self.kept_values.index(self.support)

    @cached_property
    def spikes_at(self) -> int | None:
        """Which of `kept_values` the spikes are."""
        return None if self.spikes is None else self.kept_values.index(self.spikes)

    def bits(self, number_bits: int = 32) -> int:
        """Bits kept per neuron and step."""
        return sum(cost_in_bits(value, number_bits) for value in self.kept)


def cost_in_bits(value: Value, number_bits: int = 32) -> int:
    """What keeping `value` at one step of one neuron costs."""
    return 1 if value.boolean else number_bits


def make_plan(step: Step) -> Plan:
    """The cheapest plan for the backward of `step`."""
    roots = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    forward = _forward([*step.nexts, *roots])
    kept = _cheapest(step, roots, forward)
    support = _support(step, roots)
    if support not in forward:
        support = None
    elif support not in kept:
        kept = (*kept, support)
    before = tuple(sorted({int(v.data) for v in evaluated(roots, set(kept)) if v.word == "previous"}))
    return Plan(kept, before, support, _spikes(step, kept))


def replayed(step: Step, plan: Plan) -> Plan | None:
    """The plan by which the backward runs `step` forward again from its input, for what `plan` keeps.

    It is worth that where numbers would be kept, and where the step costs little: the input is read twice,
    but nothing is written that is read again. None where it isn't, and for what does not spike.
    """
    forward = reachable([*step.nexts, *plan.kept])
    dear = any(value.word in CALLS or value.word == "sigmoid" for value in forward)
    if dear or step.nexts[-1].word != "to_float" or all(value.boolean for value in plan.kept_values):
        return None
    (input_,) = (value for value in forward if value.word == "input")
    kept = (input_,) if plan.support is None else (input_, plan.support)
    return Plan(kept, tuple(range(len(step.states))), plan.support, _spikes(step, kept), plan)


def reachable(roots: Iterable[Value]) -> list[Value]:
    """Every value that `roots` are made of, each after its arguments."""
    return evaluated(roots, ())


def evaluated(roots: Iterable[Value], known: Container[Value]) -> list[Value]:
    """What must be evaluated or read for `roots` when `known` are at hand; each after its arguments."""
    order: dict[Value, None] = {}

    def visit(value: Value) -> None:
        if value not in order and value not in known:
            for argument in value.args:
                visit(argument)
            order[value] = None

    for root in roots:
        visit(root)
    return list(order)


def _forward(roots: list[Value]) -> list[Value]:
    """The values of one step that no gradient enters, in the order in which they are computed."""
    behind: set[Value] = set()
    for value in reachable(roots):
        if value.word == "gradient" or any(argument in behind for argument in value.args):
            behind.add(value)
    return [v for v in reachable(roots) if v not in behind and v.word not in FREE]


def _cheapest(step: Step, roots: list[Value], forward: list[Value]) -> tuple[Value, ...]:
    best: tuple[Value, ...] = ()
    least = float("inf")
    later_first = [value for value in reversed(forward) if value.word != "previous"]
    candidates = sorted(later_first, key=cost_in_bits)
    for size in range(MOST_KEPT + 1):
        for kept in combinations(candidates, size):
            if sum(map(cost_in_bits, kept)) < least and (price := _price(step, roots, kept)) < least:
                best, least = kept, price
    if least < float("inf"):
        return best
    used = [value for value in reachable(roots) if value in forward]
    before = {int(value.data) for value in used if value.word == "previous"}
    return tuple(dict.fromkeys([v for v in used if v.word != "previous"] + [step.nexts[i] for i in before]))


def _price(step: Step, roots: list[Value], kept: tuple[Value, ...]) -> float:
    """Bits kept, plus what computing the rest again costs in the same measure; infinite if impossible."""
    known = set(kept)
    now = evaluated(roots, known)
    if any(value.word == "input" for value in now):
        return float("inf")
    earlier: list[Value] = []
    for value in now:
        if value.word == "previous":
            source = evaluated([step.nexts[int(value.data)]], known)
            if any(other.word in ("previous", "input") for other in source):
                return float("inf")
            earlier.extend(source)
    again = sum(_EFFORT.get(value.word, 0.1) for value in (*now, *earlier) if value.args)
    return sum(map(cost_in_bits, kept)) + again


_EFFORT: Mapping[str, float] = {**dict.fromkeys(CALLS, 8.0), "sigmoid": 8.0, "div": 0.5, "root": 0.5}


def _spikes(step: Step, kept: Container[Value]) -> Value | None:
    """The truth value that `step` emits as 1 or 0, if it is in `kept`."""
    emitted = step.nexts[-1]
    return emitted.args[0] if emitted.word == "to_float" and emitted.args[0] in kept else None


def _support(step: Step, roots: list[Value]) -> Value | None:
    """The truth value that gates the gradient of the emitted state wherever it is used, if there is one."""
    users: dict[Value, list[Value]] = {}
    for value in reachable(roots):
        for argument in value.args:
            users.setdefault(argument, []).append(value)
    emitted = len(step.nexts) - 1
    leaves = [v for v in users if v.word == "gradient" and v.data == emitted]
    gates = {_gate_of(leaf, users, set(roots)) for leaf in leaves}
    return gates.pop() if len(gates) == 1 else None


def _gate_of(value: Value, users: Mapping[Value, list[Value]], roots: set[Value]) -> Value | None:
    if value in roots:
        return None
    found = set(_gates(value, users, roots))
    return found.pop() if len(found) == 1 else None


def _gates(value: Value, users: Mapping[Value, list[Value]], roots: set[Value]) -> Iterator[Value | None]:
    for user in users.get(value, []):
        later = _gate_of(user, users, roots)
        if later is not None and user.word in ("mul", "neg"):
            yield later
        elif user.word == "mul" and user.args[0] is not user.args[1]:
            (other,) = (a for a in user.args if a is not value)
            yield _gate(other)
        elif user.word == "where" and user.args[1] is value and _is_zero(user.args[2]):
            yield user.args[0]
        else:
            yield None


def _gate(factor: Value) -> Value | None:
    """The truth value outside which `factor` is zero."""
    if factor.word == "to_float":
        return factor.args[0]
    if factor.word == "where" and _is_zero(factor.args[2]):
        return factor.args[0]
    if factor.word == "mul":
        return _gate(factor.args[0]) or _gate(factor.args[1])
    return None


def _is_zero(value: Value) -> bool:
    return value.word == "number" and value.data == 0
