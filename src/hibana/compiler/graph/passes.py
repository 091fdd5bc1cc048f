"""The forward and backward pass of one step: what it reads and writes, by name, for every backend.

A pass is a set of stores, from a name to its value, made of named leaves: ``row`` (a number per neuron),
``bits`` (a truth value per neuron), ``scalar`` (one number for all) and ``draw`` (a random one
per neuron).

======================  ========================================================================
``x``                   the input at this step
``v_state``, …          each state: read as it was before the step, written as after it
``emitted_before``      what was emitted a step earlier
``residual0``, …            what the plan keeps of this step; ``residual0_earlier`` of the step before
``v_state_before``, …   in the backward, each state as it was before the step
``v_state_grad``, …     gradients of the states: read after the step, written before it
``emitted_grad``        the gradient that arrives for what was emitted at this step
``x_grad``              the gradient of the input
``sum0``, …             sums over time that the gradients of the cell's tensors are made of
``outer0``, …           gradients that gradients of matrices are outer products of
``gate0``, …            a mask of the step before, outside which state 0's gradient is not used
``p0``, …               per-neuron parameters; scalar ones are ``scalar`` leaves, ``p[0]`` of one number
``c[0]``, …             constants
``uniform0``, …         random numbers of this step; ``uniform0_earlier`` of the step before
======================  ========================================================================
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from hibana.compiler.graph.plan import Plan, evaluated, has_gradient
from hibana.compiler.graph.step import Step, Value

Stores = dict[str, Value]
Leaf = Callable[[Value], Value | None]


def forward_pass(step: Step, plan: Plan | None) -> Stores:
    """One step forward: the next states, and the residuals of `plan` if it is given."""
    stores = dict(zip(step.states, step.nexts, strict=True))
    if plan is not None:
        stores |= {f"residual{i}": value for i, value in enumerate(plan.residuals) if value.op != "input"}
    emitted = len(step.states) - 1

    def leaf(value: Value) -> Value | None:
        if value.op == "previous":
            index = int(value.data)
            return Value("row", data="emitted_before" if index == emitted else step.states[index])
        return _shared(value)

    return _named(stores, leaf)


def before_pass(step: Step, plan: Plan) -> Stores:
    """The previous states that the backward uses, from the residuals of the step before."""
    residuals = {value: _residual(value, f"residual{i}_earlier") for i, value in enumerate(plan.residuals)}
    stores = {f"{step.states[i]}_before": step.nexts[i] for i in plan.before}

    def leaf(value: Value) -> Value | None:
        if value.op == "draw":
            return replace(value, data=f"{value.data}_earlier")
        return residuals.get(value) or _shared(value)

    return _named(stores, leaf)


def backward_pass(step: Step, plan: Plan, *, wants_input: bool) -> Stores:
    """One step back: the gradients of the input and of the states before it, and the sums over time."""
    residuals = {value: _residual(value, f"residual{i}") for i, value in enumerate(plan.residuals)}
    emitted = len(step.states) - 1
    given: dict[int, Value] = {}

    def leaf(value: Value) -> Value | None:
        if value in residuals:
            return residuals[value]
        index = int(value.data) if value.op in ("previous", "gradient") else 0
        if value.op == "previous":
            return Value("row", data=f"{step.states[index]}_before")
        if value.op == "gradient" and index not in given:
            carried = Value("row", data=f"{step.states[index]}_grad")
            arriving = Value("row", data="emitted_grad")
            fed_back = step.grad_states[emitted] is not None
            both = Value("add", (arriving, carried)) if fed_back else arriving
            given[index] = both if index == emitted else carried
        return given[index] if value.op == "gradient" else _shared(value)

    written = {step.grad_input} if wants_input else set()
    outer: Stores = {}
    for i, side in enumerate(arriving(step)):
        if side not in written:
            outer[f"outer{i}"] = side
            written.add(side)
    zero = Value("number")
    sums: Stores = {f"sum{i}": value for i, value in enumerate(step.grad_sums)}
    stores: Stores = {}
    if wants_input:
        stores["x_grad"] = step.grad_input or zero
    for i, (name, grad) in enumerate(zip(step.states, step.grad_states, strict=True)):
        if grad is not None or i != emitted:
            stores[f"{name}_grad"] = grad or zero
    named = _named(stores | sums | outer, leaf)
    for name in sums:
        named[name] = Value("add", (Value("row", data=name), named[name]))
    return named


def arriving(step: Step) -> list[Value]:
    """For each pair of ``step.outer``, the side that is a gradient."""
    return [next(side for side in pair if has_gradient(side)) for pair in step.outer]


def leaves(stores: Mapping[str, Value]) -> dict[str, Value]:
    """The named leaves that `stores` are made of."""
    values = evaluated(stores.values(), ())
    return {str(v.data): v for v in values if v.op in _NAMED}


def substitute(stores: Mapping[str, Value], replacements: Mapping[Value, Value]) -> Stores:
    """The expressions `stores`, by name, with each key of `replacements` in them replaced by its value."""
    return _named(stores, replacements.get)


_NAMED = ("row", "bits", "scalar", "draw")


def _shared(value: Value) -> Value | None:
    if value.op == "gate":
        return Value("bits", data=f"gate{value.data}")
    if value.op == "input":
        return Value("row", data="x")
    if value.op == "parameter":
        name = f"p{value.data}"
        return Value("scalar", data=f"{name}[0]") if value.scalar else Value("row", data=name)
    if value.op == "draw":
        return value
    return Value("scalar", data=f"c[{value.data}]") if value.op == "constant" else None


def _residual(value: Value, name: str) -> Value:
    if value.op == "input":
        name = name.replace(name.partition("_")[0], "x")
    return Value("bits" if value.boolean else "row", data=name)


def _named(stores: Mapping[str, Value], leaf: Leaf) -> Stores:
    """`stores` with each value replaced for which `leaf` gives another; equal leaves become one object."""
    done: dict[Value, Value] = {}
    known: dict[tuple[str, int | str], Value] = {}
    for value in evaluated(stores.values(), ()):
        found = leaf(value)
        if found is None:
            done[value] = Value(value.op, tuple(done[a] for a in value.args), value.data, value.scalar)
        elif found.op in _NAMED:
            done[value] = known.setdefault((found.op, found.data), found)
        else:
            done[value] = found
    return {name: done[value] for name, value in stores.items()}
