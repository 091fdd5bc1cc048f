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

from collections.abc import Mapping

from hibana.compiler.graph.analysis import Rewriting, evaluation_order, substitute
from hibana.compiler.graph.plan import Plan, has_gradient
from hibana.compiler.graph.step import Step, Value

__all__ = ["Stores", "arriving", "backward_pass", "before_pass", "forward_pass", "leaves", "substitute"]

Stores = dict[str, Value]


def forward_pass(step: Step, plan: Plan | None) -> Stores:
    """One step forward: the next states, and the residuals of `plan` if it is given."""
    stores = dict(zip(step.states, step.nexts, strict=True))
    if plan is not None:
        stores |= {f"residual{i}": value for i, value in enumerate(plan.residuals) if not value.is_input}
    return _Forward(step).rewrite(stores)


def before_pass(step: Step, plan: Plan) -> Stores:
    """The previous states that the backward uses, from the residuals of the step before."""
    stores = {f"{step.states[i]}_before": step.nexts[i] for i in plan.before}
    return _Before(step, _residuals(plan, "_earlier")).rewrite(stores)


def backward_pass(step: Step, plan: Plan, *, wants_input: bool) -> Stores:
    """One step back: the gradients of the input and of the states before it, and the sums over time."""
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
        if grad is not None or i != len(step.states) - 1:
            stores[f"{name}_grad"] = grad or zero
    named = _Backward(step, _residuals(plan)).rewrite(stores | sums | outer)
    for name in sums:
        named[name] = Value("add", (Value("row", data=name), named[name]))
    return named


def arriving(step: Step) -> list[Value]:
    """For each pair of ``step.outer``, the side that is a gradient."""
    return [next(side for side in pair if has_gradient(side)) for pair in step.outer]


def leaves(stores: Mapping[str, Value]) -> dict[str, Value]:
    """The named leaves that `stores` depend on."""
    return {str(value.data): value for value in evaluation_order(stores.values(), ()) if value.is_named}


def _residuals(plan: Plan, suffix: str = "") -> dict[Value, Value]:
    """The leaf that each residual of `plan` is read as."""
    names = ("x" if value.is_input else f"residual{i}" for i, value in enumerate(plan.residuals))
    return {
        value: Value("bits" if value.boolean else "row", data=f"{name}{suffix}")
        for name, value in zip(names, plan.residuals, strict=True)
    }


class _Pass(Rewriting):
    """Replaces the leaves of a step by the named leaves of a pass, one object for each name."""

    def __init__(self, step: Step, residuals: Mapping[Value, Value] | None = None) -> None:
        super().__init__(residuals)
        self.step = step
        self.emitted = len(step.states) - 1
        self.named: dict[tuple[str, str], Value] = {}

    def _leaf(self, op: str, name: str) -> Value:
        return self.named.setdefault((op, name), Value(op, data=name))

    def on_input(self, value: Value) -> Value:
        return self._leaf("row", "x")

    def on_gate(self, value: Value) -> Value:
        return self._leaf("bits", f"gate{value.data}")

    def on_constant(self, value: Value) -> Value:
        return self._leaf("scalar", f"c[{value.data}]")

    def on_parameter(self, value: Value) -> Value:
        name = f"p{value.data}"
        return self._leaf("scalar", f"{name}[0]") if value.scalar else self._leaf("row", name)


class _Forward(_Pass):
    def on_previous(self, value: Value) -> Value:
        is_emitted = value.data == self.emitted
        return self._leaf("row", "emitted_before" if is_emitted else self.step.states[int(value.data)])


class _Before(_Pass):
    def on_draw(self, value: Value) -> Value:
        return self._leaf("draw", f"{value.data}_earlier")


class _Backward(_Pass):
    def on_previous(self, value: Value) -> Value:
        return self._leaf("row", f"{self.step.states[int(value.data)]}_before")

    def on_gradient(self, value: Value) -> Value:
        carried = self._leaf("row", f"{self.step.states[int(value.data)]}_grad")
        if value.data != self.emitted:
            return carried
        arriving = self._leaf("row", "emitted_grad")
        return arriving if self.step.grad_states[-1] is None else Value("add", (arriving, carried))
