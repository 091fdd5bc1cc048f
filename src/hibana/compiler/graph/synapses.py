"""The matrix products of a step: operands of their gradients, and masks of neurons that need the product.

The gradient of a matrix is one product over the whole sequence: of the operands of the matrix, which must be
residuals of the step or of the step before, and of the gradients that arrive at its products. In the backward
pass, a gradient that a matrix multiplies is multiplied next by the derivative of a surrogate, so the product
is not needed outside the surrogate's mask.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from hibana.compiler.graph.analysis import Rewriting, reachable
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import Gate, gates_of, has_gradient, state_gates
from hibana.compiler.graph.step import Step, Value


class Operand(NamedTuple):
    """The operand of a matrix product of a step."""

    residual: Value
    """The value to store: a boolean, a number or the input."""
    state: int | None
    """The index of the previous state that the operand is, whose residual is of the step before; or None."""
    gradient: Value
    """The gradient that arrives at the product."""
    is_left: bool
    """Whether the operand is the left side of its pair in :attr:`Step.outer`."""


def operands(step: Step) -> tuple[Operand, ...]:
    """The operand of each pair in :attr:`Step.outer`.

    Raises:
        Unsupported: if both sides of a pair are gradients or neither, or no step computes the operand.
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
    """The residuals that matrix products need: their operands, and the masks of their gradients."""
    if not step.matrices:
        return []
    masks = [mask for mask, _ in _product_gates(step).values()]
    return list(dict.fromkeys([*(operand.residual for operand in operands(step)), *masks]))


def with_masks(step: Step) -> tuple[Step, dict[int, Value]]:
    """`step` with a mask as second argument of each product in its gradients, and the masks of states.

    A mask is a boolean of this step, or a leaf ``gate``: the mask of the state `data` one step earlier. The
    second result has these masks by state. A product that is needed for all neurons keeps one argument.
    """
    gates = _product_gates(step)
    masks = {
        product: gate if state is None else Value("gate", data=state)
        for product, (gate, state) in gates.items()
    }
    masking = _Masking(masks)
    outer = [
        (left, masking.of(right)) if operand.is_left else (masking.of(left), right)
        for operand, (left, right) in zip(operands(step), step.outer, strict=True)
    ]
    state_masks = {state: gate for gate, state in gates.values() if state is not None}
    return step.with_gradients(masking.of, outer), state_masks


class _Masking(Rewriting):
    """Adds a mask of the neurons whose result is needed to the products in `masks`."""

    def __init__(self, masks: Mapping[Value, Value]) -> None:
        super().__init__()
        self.masks = masks

    def product(self, value: Value, args: list[Value]) -> Value:
        mask = self.masks.get(value)
        return super().product(value, args if mask is None else [*args, mask])


def _product_gates(step: Step) -> dict[Value, Gate]:
    """The gates of the products of gradients, for products that have a gate."""
    forward = set(reachable(step.nexts))
    gates = gates_of(step, state_gates(step))
    return {
        value: gate
        for value, gate in reversed(gates.items())
        if value.is_product and gate is not None and value not in forward and has_gradient(value)
    }
