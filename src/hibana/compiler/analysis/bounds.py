"""Gradients of a step where zero times an unbounded derivative is zero.

Where autograd has the gradient None, kernels have zeros. The results are the same unless a zero is multiplied
with a derivative that is infinite or NaN, such as the derivative of ``sqrt`` at 0. So products with values
that may be infinite or NaN, though the states are finite, are zero where the gradient is.
"""

from dataclasses import replace

from hibana.compiler.graph.analysis import Analysis, Rewriting, dependents, reachable
from hibana.compiler.graph.ops import Operation
from hibana.compiler.graph.part import Part, guard_part
from hibana.compiler.graph.plan import gradients, has_gradient
from hibana.compiler.graph.step import Step, Value

LEAST = 1e-30
"""Quotients by numbers of at least this size count as finite."""
LARGEST = 3.4028234663852886e38
"""The largest float32."""


def guard_products(step: Step) -> Step:
    """`step` with gradients where zero times an unbounded derivative is zero.

    A product or quotient of a gradient and a value that may be infinite or NaN becomes zero where the
    gradient is zero. A product with the constant zero, such as the gradient of ``floor``, becomes that
    constant.
    """
    guarding = _Guarding(step)
    outer = [guarding.of(side) if has_gradient(side) else side for side in step.sides]
    guarded = step.with_gradients(guarding.of, zip(outer[::2], outer[1::2], strict=True))
    epilogue = step.epilogue
    if isinstance(epilogue, Part):
        epilogue = guard_part(epilogue, epilogue.input_count - len(step.grad_sums) - len(step.outer))
    return replace(guarded, epilogue=epilogue)


class _Guarding(Rewriting):
    """Guards products and quotients in the gradients of a step."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.finite = _Finite(step)
        self.forward = set(reachable(step.nexts))
        order = reachable(gradients(step))
        self.backward = dependents(order, (value for value in order if value.is_gradient))

    def operation(self, value: Value, row: Operation, args: list[Value]) -> Value:
        """The operation with new arguments; products and quotients with a gradient become `where`.

        ``where(gradient, result, 0)`` keeps a zero gradient zero if the other factor is not finite.
        """
        result = super().operation(value, row, args)
        if value in self.forward or row.name not in ("mul", "div"):
            return result
        first, second = value.args
        factors = [new for old, new in zip(value.args, args, strict=True) if old in self.backward]
        if first.is_number(0) or (second.is_number(0) and row.zero_at_zero):
            return result if factors else Value("number")
        if len(factors) != 1 or self._is_finite_factor(value, row):
            return result
        return Value("where", (Value("to_bool", (factors[0],)), result, Value("number")))

    def _is_finite_factor(self, value: Value, row: Operation) -> bool:
        """Whether a product or quotient multiplies a gradient by a finite number."""
        first, second = value.args
        if not row.zero_at_zero:  # a quotient
            return first in self.backward and self.finite.divides_by_number(value)
        return self.finite.of(second if first in self.backward else first)


class _Finite(Analysis[bool]):
    """Whether values are finite, if inputs, states and parameters are."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.constants = step.constants

    def leaf(self, value: Value) -> bool:
        """Inputs, states, parameters, numbers and draws are finite."""
        return True

    def on_constant(self, value: Value) -> bool:
        """Whether a constant is finite in float32."""
        return abs(self.constants[value.data]) <= LARGEST

    def product(self, value: Value, args: list[bool]) -> bool:
        """Products with matrices are finite."""
        return True

    def operation(self, value: Value, row: Operation, args: list[bool]) -> bool:
        """Whether the operation has a finite result for finite arguments."""
        return row.boolean or (all(args) and (row.finite or self.divides_by_number(value)))

    def divides_by_number(self, value: Value) -> bool:
        """Whether `value` is a quotient whose divisor is a constant of at least 1e-30."""
        if value.op != "div":
            return False
        divisor = value.args[1]
        number = self.constants[divisor.data] if divisor.op == "constant" else divisor.data
        return divisor.is_uniform and divisor.op != "parameter" and abs(float(number)) >= LEAST
