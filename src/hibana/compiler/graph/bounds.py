"""Bounds of a step's values, and the rule that zero times an unbounded derivative is zero.

Autograd multiplies nothing by a gradient that is None, and kernels take zeros for it. The product with a
derivative is the same unless that is infinite or NaN, as the derivative of ``sqrt`` at zero. So values are
bounded, given that the states before and after the step are finite; a quotient that may divide by zero may be
infinite.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from hibana.compiler.generator import LARGEST_NORMAL
from hibana.compiler.graph.ops import OPERATIONS
from hibana.compiler.graph.part import Part, guarded_part
from hibana.compiler.graph.plan import gradients, has_gradient, reachable
from hibana.compiler.graph.step import Step, Value

Bounds = tuple[float, float]

ANY: Bounds = (-math.inf, math.inf)
LEAST = 1e-30
"""A quotient by a number at least this far from zero counts as finite."""
MOST = 80.0
"""Up to here ``exp`` is finite in float32."""
LARGEST = 3.4028234663852886e38
"""The largest float32."""


def guard_products(step: Step) -> Step:
    """`step` with gradients in which zero times an unbounded derivative is zero.

    Products and quotients of a gradient and a value that is not surely finite are selected by whether the
    gradient is zero. The number zero, as the gradient of ``floor``, stays zero.
    """
    bounds = _Bounds(step)
    forward = set(reachable(step.nexts))
    new: dict[Value, Value] = {}
    for value in reachable(gradients(step)):
        args = tuple(new[argument] for argument in value.args)
        new[value] = value if args == value.args else replace(value, args=args)
        if value in forward or value.op not in ("mul", "div"):
            continue
        flowing = [argument for argument in value.args if has_gradient(argument)]
        if value.args[0].is_number(0) or (value.op == "mul" and value.args[1].is_number(0)):
            if not flowing:
                new[value] = Value("number")
        elif len(flowing) == 1 and not bounds.is_finite_factor(value, flowing[0]):
            nonzero = Value("to_bool", (new[flowing[0]],))
            new[value] = Value("where", (nonzero, new[value], Value("number")))
    epilogue = step.epilogue
    if isinstance(epilogue, Part):
        epilogue = guarded_part(epilogue, epilogue.takes - len(step.grad_sums) - len(step.outer))
    if all(value is other for value, other in new.items()):
        return replace(step, epilogue=epilogue)
    return replace(
        step,
        grad_input=None if step.grad_input is None else new[step.grad_input],
        grad_states=tuple(None if value is None else new[value] for value in step.grad_states),
        grad_sums=tuple(new[value] for value in step.grad_sums),
        outer=tuple((new.get(left, left), new.get(right, right)) for left, right in step.outer),
        epilogue=epilogue,
    )


class _Bounds:
    """The bounds of a step's values; None for what may be infinite or NaN."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.known: dict[Value, Bounds | None] = {}
        self.finite: set[Value] = set()
        """Values that are finite since the states after the step are."""
        waiting = list(step.nexts)
        while waiting:
            value = waiting.pop()
            if value not in self.finite:
                self.finite.add(value)
                if value.op in ("add", "sub", "mul", "neg", "abs"):
                    waiting += value.args
                elif value.op == "div":
                    waiting.append(value.args[0])

    def is_finite_factor(self, value: Value, gradient: Value) -> bool:
        """Whether `value`, a product or quotient, multiplies `gradient` by a finite number."""
        first, second = value.args
        if value.op == "div":
            return first is gradient and _reciprocal(self.of(second)) is not None
        return self.of(second if first is gradient else first) is not None

    def of(self, value: Value) -> Bounds | None:
        for other in reachable([value]):
            if other not in self.known:
                found = self._made(other)
                if found is not None and any(LARGEST < abs(end) < math.inf for end in found):
                    found = None
                if found is None and other.args and other.op != "div" and other in self.finite:
                    found = (0.0, math.inf) if other.op == "exp" else ANY
                self.known[other] = found
        return self.known[value]

    def _made(self, value: Value) -> Bounds | None:
        if value.boolean:
            return 0.0, 1.0
        if value.op == "number":
            return float(value.data), float(value.data)
        if value.op == "constant":
            number = self.step.constants[int(value.data)]
            return (number, number) if abs(number) <= LARGEST else None
        if value.op == "draw":
            normal = str(value.data).startswith("normal")
            return (-LARGEST_NORMAL, LARGEST_NORMAL) if normal else (0.0, 1.0)
        if not value.args or value.op == "product":
            return ANY
        args = [self.known[argument] for argument in value.args]
        given = [bounds for bounds in args if bounds is not None]
        if len(given) < len(args):
            return None
        if value.op == "mul" and value.args[0] is value.args[1]:
            low, high = given[0]
            return (0.0 if low <= 0 <= high else min(low * low, high * high)), max(low * low, high * high)
        row = OPERATIONS.get(value.op)
        if row is not None and row.within is not None:
            return row.within
        rule = _RULES.get(value.op)
        return rule(*given) if rule else None


def _product(a: Bounds, b: Bounds | None) -> Bounds | None:
    if b is None:
        return None
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _reciprocal(a: Bounds | None) -> Bounds | None:
    if a is None or not (a[0] >= LEAST or a[1] <= -LEAST):
        return None
    return 1 / a[1], 1 / a[0]


_RULES: dict[str, Callable[..., Bounds | None]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _product,
    "div": lambda a, b: _product(a, _reciprocal(b)),
    "abs": lambda a: (max(0.0, a[0], -a[1]), max(-a[0], a[1])),
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "where": lambda _, a, b: (min(a[0], b[0]), max(a[1], b[1])),
    "to_float": lambda a: a,
    **dict.fromkeys(("sqrt", "root"), lambda a: (math.sqrt(a[0]), math.sqrt(a[1])) if a[0] >= 0 else None),
    "exp": lambda a: (math.exp(a[0]), math.exp(a[1])) if a[1] <= MOST else None,
    **dict.fromkeys(("log", "log2"), lambda a: ANY if a[0] >= LEAST else None),
    **dict.fromkeys(("floor", "ceil", "trunc"), lambda a: (a[0] - 1, a[1] + 1)),
}
