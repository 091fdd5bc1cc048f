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
    """The vector that a matrix of a step multiplies. The gradient of the matrix needs it at all steps."""

    residual: Value
    """The value to store: a boolean, a number or the input."""
    state: int | None
    """The index of the previous state that the operand is, whose residual is of the step before; or None."""
    gradient: Value
    """The gradient that arrives at the product."""
    is_left: bool
    """Whether the operand is the left side of its pair in :attr:`Step.outer`."""


def operands(step: Step) -> tuple[Operand, ...]:
    """The vectors that the matrices of `step` multiply, one for each outer product in :attr:`Step.outer`.

    The gradient of a matrix is the sum of the outer products of such a vector and the gradient of the
    product. Raises Unsupported if both factors of an outer product are gradients or neither, or no step
    computes the vector.
    """
    return tuple(_operand(step, pair) for pair in step.outer)


def _operand(step: Step, pair: tuple[Value, Value]) -> Operand:
    """The factor of an outer product that is no gradient, and how the backward pass gets its value."""
    is_left = has_gradient(pair[1])
    if has_gradient(pair[0]) == is_left:
        raise Unsupported("a product of neurons with one another, in the gradient of a matrix")
    value, gradient = pair if is_left else pair[::-1]
    state = value.data if value.is_previous else None
    if state is not None:
        value = step.nexts[state]
    value = value.as_boolean or value
    if value.is_previous or value.is_draw or value.is_available:
        kind = "draw" if value.is_draw else value.op
        raise Unsupported(f"a matrix is multiplied with a {kind} that no step computes")
    return Operand(value, state, gradient, is_left)


def with_computed_operands(step: Step) -> Step:
    """`step`, multiplying by 1 each state that it passes on unchanged and that a matrix multiplies.

    The backward pass needs the vector that a matrix multiplies, and only values that a step computes are
    stored for it. Multiplication by 1 makes the state a computed value and does not change the number.
    """
    multiplied = {side.data for side in step.sides if side.is_previous}
    nexts = list(step.nexts)
    for i in multiplied:
        if nexts[i].is_previous:
            nexts[i] = Value("mul", (nexts[i], Value("number", data=1)))
    return replace(step, nexts=tuple(nexts))


def required_residuals(step: Step) -> list[Value]:
    """The values that gradients of matrix products need: the multiplied vectors, and masks of gradients."""
    if not step.matrices:
        return []
    masks = [mask for mask, _ in _product_gates(step).values()]
    return list(dict.fromkeys([*(operand.residual for operand in operands(step)), *masks]))


def with_masks(step: Step) -> tuple[Step, dict[int, Value]]:
    """Adds masks to the matrix products in the gradients of `step`: neurons whose result is needed.

    A mask becomes the second argument of a product. It is a boolean of this step, or a leaf ``gate`` that
    stands for a boolean of the step before, which masks the gradient of a state. A product that is needed for
    all neurons keeps one argument.

    Returns:
        The step, and by index of a state the boolean that the ``gate`` leaves of the next step stand for.
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
        """The product with its mask, if it has one, as second argument."""
        mask = self.masks.get(value)
        return super().product(value, args if mask is None else [*args, mask])


def _product_gates(step: Step) -> dict[Value, Gate]:
    """The boolean that masks each matrix product of a gradient: elsewhere its result has no effect.

    Products without such a boolean are missing.
    """
    forward = set(reachable(step.nexts))
    gates = gates_of(step, state_gates(step))
    return {
        value: gate
        for value, gate in reversed(gates.items())
        if value.is_product and gate is not None and value not in forward and has_gradient(value)
    }
