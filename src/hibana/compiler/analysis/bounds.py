"""Bounds of the values of a step, and gradients where zero times an unbounded derivative is zero.

Where autograd has the gradient None, kernels have zeros. The results are the same unless a zero is multiplied
with a derivative that is infinite or NaN, such as the derivative of ``sqrt`` at 0. The bounds show which
derivatives are finite, given that the states before and after the step are.
"""

import math
from dataclasses import replace

from hibana.compiler.generator import LARGEST_NORMAL
from hibana.compiler.graph.analysis import Analysis, Rewriting, dependents, reachable
from hibana.compiler.graph.ops import ANY, Interval, Operation, reciprocal
from hibana.compiler.graph.part import Part, guard_part
from hibana.compiler.graph.plan import gradients, has_gradient
from hibana.compiler.graph.step import Step, Value

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
        self.bounds = Bounds(step)
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
            return first in self.backward and reciprocal(self.bounds.of(second)) is not None
        return self.bounds.of(second if first in self.backward else first) is not None


class Bounds(Analysis[Interval | None]):
    """Bounds of values; None for values that may be infinite or NaN."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.constants = step.constants
        self.finite: set[Value] = set()
        """Values that are finite because the states after the step are."""
        waiting = list(step.nexts)
        while waiting:
            value = waiting.pop()
            if value not in self.finite:
                self.finite.add(value)
                if value.operation is not None:
                    waiting += [value.args[i] for i in value.operation.keeps_finite]

    def leaf(self, value: Value) -> Interval | None:
        """Inputs, states and parameters are finite."""
        return ANY

    def on_number(self, value: Value) -> Interval | None:
        """A number is its own lower and upper bound."""
        return float(value.data), float(value.data)

    def on_constant(self, value: Value) -> Interval | None:
        """The number itself; None if it is infinite in float32."""
        number = self.constants[int(value.data)]
        return (number, number) if abs(number) <= LARGEST else None

    def on_draw(self, value: Value) -> Interval | None:
        """Bounds of a random number."""
        is_normal = str(value.data).startswith("normal")
        return (-LARGEST_NORMAL, LARGEST_NORMAL) if is_normal else (0.0, 1.0)

    def product(self, value: Value, args: list[Interval | None]) -> Interval | None:
        """Products with matrices are finite."""
        return ANY

    def operation(self, value: Value, row: Operation, args: list[Interval | None]) -> Interval | None:
        """The bounds of the operation's result; None if they are unknown."""
        if row.boolean:
            return 0.0, 1.0
        bounds = self._of_operation(value, row, args)
        if bounds is None or any(LARGEST < abs(end) < math.inf for end in bounds):
            return row.range if value in self.finite else None
        return bounds

    @staticmethod
    def _of_operation(value: Value, row: Operation, args: list[Interval | None]) -> Interval | None:
        """Bounds of the operation `row`, from the bounds `args` of its arguments; None if one is unknown."""
        bounds = [interval for interval in args if interval is not None]
        if len(bounds) < len(args):
            return None
        if row.name == "mul" and value.args[0] is value.args[1]:
            low, high = sorted(end * end for end in bounds[0])
            return 0.0 if bounds[0][0] <= 0 <= bounds[0][1] else low, high
        return row.bounds if isinstance(row.bounds, tuple) else row.bounds(*bounds)
