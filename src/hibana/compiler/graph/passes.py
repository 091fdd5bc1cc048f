"""The forward and backward pass of one step for all backends: the values that a pass writes, by leaf.

Values of a pass depend on leaves: ``row`` (a number per neuron), ``bits`` (a boolean per neuron), ``scalar``
(one number for all neurons) and ``draw`` (a random number per neuron). These are the kinds of
:class:`Leaf`; the offset of a leaf of the step before is -1.

=====================  ========================================================================
``input``              the input of the step
``output``             the output of the step
``state``              each state: read before the step, written after it. In a backward pass its offset
                       is -1, and gradients are read after the step and written before it.
``residual``           the residuals of the plan
``sum``                sums over time, from which gradients of the cell's tensors are computed
``outer``              gradients that are factors of the outer products for gradients of matrices
``gate``               a mask of the step before, outside which a state's gradient has no effect
``parameter``          parameters, a ``scalar`` if all neurons share the number
``constant``           constants
``uniform, normal``    random numbers
``product, operand``   in programs of networks, products with matrices, and what they multiply
``scratch``            in kernels of the CPU, rows between functions, which also have results of products
``initial, is_first``  in kernels of the CPU, a state before the first step, and whether a step is the first
=====================  ========================================================================
"""

from collections.abc import Mapping

from hibana.compiler.graph.analysis import Rewriting, evaluation_order, substitute
from hibana.compiler.graph.leaf import INPUT, Leaf
from hibana.compiler.graph.plan import Plan, has_gradient
from hibana.compiler.graph.step import Step, Value

__all__ = ["Stores", "backward_pass", "before_pass", "forward_pass", "gradient_sides", "leaves", "substitute"]

Stores = dict[Leaf, Value]

OUTPUT_GRADIENT = Leaf("output", is_gradient=True, name="emitted")


def forward_pass(step: Step, plan: Plan | None) -> Stores:
    """What a kernel of the forward pass stores: the next states, the output, and the residuals of a `plan`.

    A residual is a value that the backward pass reads.
    """
    stores = dict(zip((*step.carried[:-1], step.output), step.nexts, strict=True))
    if plan is not None:
        residuals = enumerate(plan.residuals)
        stores |= {Leaf("residual", i): value for i, value in residuals if not value.is_input}
    return _Pass(step).rewrite(stores)


def before_pass(step: Step, plan: Plan) -> Stores:
    """The previous states that the backward pass uses, computed from the residuals of the step before."""
    stores = {step.state(i, -1): step.nexts[i] for i in plan.before}
    return _Pass(step, _residuals(plan, -1), -1).rewrite(stores)


def backward_pass(step: Step, plan: Plan, *, wants_input: bool) -> Stores:
    """What a kernel of the backward pass stores.

    These are the gradients of the input and of the states before the step, the sums over time for parameters,
    and for each matrix the gradient factor of its outer product.
    """
    written = {step.grad_input} if wants_input else set()
    outer: Stores = {}
    for i, side in enumerate(gradient_sides(step)):
        if side not in written:
            outer[Leaf("outer", i)] = side
            written.add(side)
    zero = Value("number")
    sums: Stores = {Leaf("sum", i): value for i, value in enumerate(step.grad_sums)}
    stores: Stores = {}
    if wants_input:
        stores[INPUT.gradient] = step.grad_input or zero
    for i, grad in enumerate(step.grad_states):
        if grad is not None or i != len(step.states) - 1:
            stores[step.state(i, is_gradient=True)] = grad or zero
    results = _Pass(step, _residuals(plan), previous=-1).rewrite(stores | sums | outer)
    for leaf in sums:
        results[leaf] = Value("add", (Value("row", leaf=leaf), results[leaf]))
    return results


def gradient_sides(step: Step) -> list[Value]:
    """The factor that depends on a gradient, for each outer product (pair of factors) in ``step.outer``."""
    return [next(side for side in pair if has_gradient(side)) for pair in step.outer]


def leaves(stores: Mapping[Leaf, Value]) -> dict[Leaf, Value]:
    """The leaves that `stores` depend on."""
    return {value.leaf: value for value in evaluation_order(stores.values(), ()) if value.is_named}


def _residuals(plan: Plan, offset: int = 0) -> dict[Value, Value]:
    """By residual of `plan`: the leaf that reads it, of the step at `offset`."""
    residuals = {}
    for i, value in enumerate(plan.residuals):
        leaf = INPUT.at(offset) if value.is_input else Leaf("residual", i, offset)
        residuals[value] = Value("bits" if value.boolean else "row", leaf=leaf)
    return residuals


class _Pass(Rewriting):
    """Replaces the leaves of a step by leaves of a pass; each is one object.

    Args:
        step: the step of the cell.
        residuals: the leaves that stand for residuals.
        draws: the offset of draws.
        previous: the offset of the states before the step.
    """

    def __init__(
        self,
        step: Step,
        residuals: Mapping[Value, Value] | None = None,
        draws: int = 0,
        previous: int = 0,
    ) -> None:
        super().__init__(residuals)
        self.step, self.draws, self.previous = step, draws, previous
        self.leaf_values: dict[Leaf, Value] = {}

    def _leaf(self, op: str, leaf: Leaf) -> Value:
        """The value of kind `op` that reads `leaf`; one object for each leaf."""
        return self.leaf_values.setdefault(leaf, Value(op, leaf=leaf))

    def on_input(self, value: Value) -> Value:
        """The row of the input."""
        return self._leaf("row", INPUT)

    def on_previous(self, value: Value) -> Value:
        """The row of a state before the step."""
        return self._leaf("row", self.step.state(value.data, self.previous))

    def on_uniform(self, value: Value) -> Value:
        """The random number of this step, or of the step before."""
        return self._leaf("draw", Leaf("uniform", value.data, self.draws))

    def on_normal(self, value: Value) -> Value:
        """As :meth:`on_uniform`, for the normal distribution."""
        return self._leaf("draw", Leaf("normal", value.data, self.draws))

    def on_gate(self, value: Value) -> Value:
        """The bits of a mask: the neurons at which a state's gradient of the step before is needed."""
        return self._leaf("bits", Leaf("gate", value.data))

    def on_constant(self, value: Value) -> Value:
        """A scalar argument of the kernel."""
        return self._leaf("scalar", Leaf("constant", value.data))

    def on_parameter(self, value: Value) -> Value:
        """The row of a parameter, or its first element if all neurons share it."""
        return self._leaf("scalar" if value.scalar else "row", Leaf("parameter", value.data))

    def on_gradient(self, value: Value) -> Value:
        """The gradient of a state after the step; the output's includes the gradient from the next layer."""
        state_grad = self._leaf("row", self.step.state(value.data, is_gradient=True))
        if value.data != len(self.step.states) - 1:
            return state_grad
        output_grad = self._leaf("row", OUTPUT_GRADIENT)
        return output_grad if self.step.grad_states[-1] is None else Value("add", (output_grad, state_grad))
