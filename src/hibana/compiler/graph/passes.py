"""The forward and backward pass of one step for all backends: the values that a pass writes, by name.

Values of a pass depend on named leaves: ``row`` (a number per neuron), ``bits`` (a boolean per neuron),
``scalar`` (one number for all neurons) and ``draw`` (a random number per neuron).

======================  ========================================================================
``x``                   the input of the step
``v_state``, …          each state: read before the step, written after it
``emitted_before``      the output of the step before
``residual0``, …        the residuals of the plan; ``residual0_earlier`` of the step before
``v_state_before``, …   in the backward pass, each state before the step
``v_state_grad``, …     gradients of the states: read after the step, written before it
``emitted_grad``        the gradient of the output of the step
``x_grad``              the gradient of the input
``sum0``, …             sums over time, from which gradients of the cell's tensors are computed
``outer0``, …           gradients that are factors of the outer products for gradients of matrices
``gate0``, …            a mask of the step before, outside which the gradient of state 0 has no effect
``p0``, …               parameters per neuron; ``p0[0]``, a ``scalar``, for one number
``c[0]``, …             constants
``uniform0``, …         random numbers of the step; ``uniform0_earlier`` of the step before
======================  ========================================================================
"""

from collections.abc import Mapping, Sequence

from hibana.compiler.graph.analysis import Rewriting, evaluation_order, substitute
from hibana.compiler.graph.plan import Plan, has_gradient
from hibana.compiler.graph.step import Step, Value

__all__ = ["Stores", "backward_pass", "before_pass", "forward_pass", "gradient_sides", "leaves", "substitute"]

Stores = dict[str, Value]


def forward_pass(step: Step, plan: Plan | None) -> Stores:
    """What a kernel of the forward pass stores, by name: the next states, and the residuals of a `plan`.

    A residual is a value that the backward pass reads.
    """
    stores = dict(zip(step.states, step.nexts, strict=True))
    if plan is not None:
        stores |= {f"residual{i}": value for i, value in enumerate(plan.residuals) if not value.is_input}
    return _Pass(step, (*step.states[:-1], "emitted_before")).rewrite(stores)


def before_pass(step: Step, plan: Plan) -> Stores:
    """The previous states that the backward pass uses, computed from the residuals of the step before."""
    stores = {f"{step.states[i]}_before": step.nexts[i] for i in plan.before}
    return _Pass(step, (), _residuals(plan, "_earlier"), earlier=True).rewrite(stores)


def backward_pass(step: Step, plan: Plan, *, wants_input: bool) -> Stores:
    """What a kernel of the backward pass stores, by name.

    ``x_grad`` is the gradient of the input, ``STATE_grad`` that of a state before the step, ``sum0`` a sum
    over time for a parameter, and ``outer0`` the gradient factor of an outer product for a matrix.
    """
    written = {step.grad_input} if wants_input else set()
    outer: Stores = {}
    for i, side in enumerate(gradient_sides(step)):
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
    previous = [f"{name}_before" for name in step.states]
    named = _Pass(step, previous, _residuals(plan)).rewrite(stores | sums | outer)
    for name in sums:
        named[name] = Value("add", (Value("row", data=name), named[name]))
    return named


def gradient_sides(step: Step) -> list[Value]:
    """The factor that depends on a gradient, for each outer product (pair of factors) in ``step.outer``."""
    return [next(side for side in pair if has_gradient(side)) for pair in step.outer]


def leaves(stores: Mapping[str, Value]) -> dict[str, Value]:
    """The named leaves that `stores` depend on."""
    return {str(value.data): value for value in evaluation_order(stores.values(), ()) if value.is_named}


def _residuals(plan: Plan, suffix: str = "") -> dict[Value, Value]:
    """By residual of `plan`: the leaf that reads it, with `suffix` in its name."""
    names = ("x" if value.is_input else f"residual{i}" for i, value in enumerate(plan.residuals))
    return {
        value: Value("bits" if value.boolean else "row", data=f"{name}{suffix}")
        for name, value in zip(names, plan.residuals, strict=True)
    }


class _Pass(Rewriting):
    """Replaces the leaves of a step by named leaves of a pass; each name is one object.

    Args:
        step: the step of the cell.
        previous: the names of the states before the step.
        residuals: the leaves that stand for residuals.
        earlier: whether draws are those of the step before.
    """

    def __init__(
        self,
        step: Step,
        previous: Sequence[str],
        residuals: Mapping[Value, Value] | None = None,
        *,
        earlier: bool = False,
    ) -> None:
        super().__init__(residuals)
        self.step, self.previous, self.earlier = step, previous, earlier
        self.named: dict[tuple[str, str], Value] = {}

    def _leaf(self, op: str, name: str) -> Value:
        """The leaf of kind `op` with a `name`, which the kernel's arguments use; one object for each name."""
        return self.named.setdefault((op, name), Value(op, data=name))

    def on_input(self, value: Value) -> Value:
        """The row ``x``."""
        return self._leaf("row", "x")

    def on_previous(self, value: Value) -> Value:
        """The row of a state before the step."""
        return self._leaf("row", self.previous[int(value.data)])

    def on_draw(self, value: Value) -> Value:
        """The random number of this step, or of the step before."""
        return self._leaf("draw", f"{value.data}_earlier") if self.earlier else value

    def on_gate(self, value: Value) -> Value:
        """The bits of a mask: the neurons at which a state's gradient of the step before is needed."""
        return self._leaf("bits", f"gate{value.data}")

    def on_constant(self, value: Value) -> Value:
        """A scalar argument of the kernel: an element of its array ``c``."""
        return self._leaf("scalar", f"c[{value.data}]")

    def on_parameter(self, value: Value) -> Value:
        """The row of a parameter, or its first element if all neurons share it."""
        name = f"p{value.data}"
        return self._leaf("scalar", f"{name}[0]") if value.scalar else self._leaf("row", name)

    def on_gradient(self, value: Value) -> Value:
        """The gradient of a state after the step; the output's includes the gradient from the next layer."""
        state_grad = self._leaf("row", f"{self.step.states[int(value.data)]}_grad")
        if value.data != len(self.step.states) - 1:
            return state_grad
        output_grad = self._leaf("row", "emitted_grad")
        return output_grad if self.step.grad_states[-1] is None else Value("add", (output_grad, state_grad))
