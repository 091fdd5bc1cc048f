"""Translates ATen operations to the table of operations (:mod:`hibana.compiler.graph.ops`).

A row of the table names the ATen operations that are equal to it. ``COMPOSED`` has all other ATen operations,
as expressions of several rows, in the order of PyTorch's own kernels (ATen/native/cpu). So results that IEEE
754 determines agree to the last bit; backends must compute each row without contraction or reassociation.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from hibana.compiler.graph.ops import OPERATIONS, Operation, Unsupported
from hibana.compiler.graph.step import Value
from hibana.compiler.graph.terms import Rule, Term, apply, times, where
from hibana.runtime import torch_internals


def translate(
    target: torch_internals.OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argument: Callable[[Any], Value],
    make: Callable[..., Value],
    *,
    boolean: bool = False,
) -> Value:
    """The value of the ATen operation `target` applied to `args`.

    Args:
        target: the operation.
        args: its arguments, fx nodes and numbers.
        kwargs: its keyword arguments.
        argument: a function from an fx node or a number to a value.
        make: a function from the name of a row and values to the row's value.
        boolean: whether the result is a boolean tensor in PyTorch.

    Raises:
        Unsupported: if there is no rule for `target` or for its arguments.
    """
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    rule = COMPOSED.get(name)
    row = None if rule else next((row for row in OPERATIONS.values() if name in row.aten), None)
    if row is not None:
        rule = _direct(OPERATIONS[row.on_booleans] if boolean and row.on_booleans else row)
    if boolean and not (row.boolean or row.on_booleans if row else name in _BOOLEAN_RULES):
        raise Unsupported(f"{target._schema.name} of booleans")
    if rule is None:
        raise Unsupported(f"{target._schema.name} is not a pointwise operation that hibana compiles")
    options = {k: v for k, v in kwargs.items() if k in _OPTIONS.get(name, ())}
    ignored = (*options, *_IGNORED_OPTIONS)
    unsupported = {k: v for k, v in kwargs.items() if k not in ignored and v not in (1, None)}
    if unsupported:
        raise Unsupported(f"{target._schema.name} with {unsupported}")
    terms = [Term(argument, make, a) if isinstance(a, torch.fx.Node) else a for a in args]
    result = rule(*terms, **options)
    value = result.value if isinstance(result, Term) else argument(result)
    return make("to_bool" if boolean else "to_float", value)


def _direct(row: Operation) -> Rule:
    """The rule of an operation that is equal to `row`; further arguments, such as ``alpha``, must be 1."""

    def rule(*args: Any) -> Any:
        """The operation of the table with the name of `row`, on the arguments of the ATen operation."""
        if any(factor != 1 for factor in args[row.arity :]):
            raise Unsupported(f"{row.name} with alpha={args[row.arity]}")
        term = next(a for a in args if isinstance(a, Term))
        terms = [term.lift(argument) for argument in args[: row.arity]]
        return apply(row.name, *([apply("to_bool", a) for a in terms] if row.takes_booleans else terms))

    return rule


def _same(x: Any, *_: Any) -> Any:
    """`x` itself. Functions below are rules: they build the terms of an ATen operation from its arguments."""
    return x


_POWERS: dict[float, Rule] = {
    0: lambda _: 1,
    1: _same,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    0.5: lambda x: apply("sqrt", x),
    -0.5: lambda x: 1 / apply("root", x),
    -1: lambda x: 1 / x,
    -2: lambda x: 1 / (x * x),
}
"""By exponent: the operation that PyTorch computes instead of ``pow``."""


def _power(x: Any, exponent: Any) -> Any:
    """The terms of ``torch.pow``, which PyTorch computes in another way for some constant exponents."""
    is_constant = isinstance(x, Term) and not isinstance(exponent, Term)
    return _POWERS[exponent](x) if is_constant and exponent in _POWERS else apply("pow", x, exponent)


def _bounded(op: str, x: Any, bound: Any) -> Any:
    """`op`, maximum or minimum, of `x` and a bound.

    Of two zeros with different signs, the result is `x` if the bound is a number, and the bound if it is a
    tensor.
    """
    return apply(op, x, bound) if isinstance(bound, Term) else apply(op, bound, x)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """The terms of ``torch.clamp``."""
    result = x if low is None else _bounded("maximum", x, low)
    return result if high is None else _bounded("minimum", result, high)


def _where(condition: Any, x: Any, y: Any) -> Any:
    """The terms of ``torch.where``; logical operations if both `x` and `y` are booleans."""
    choice = apply("to_bool", condition)
    then, other = choice.lift(x), choice.lift(y)
    if then.value.boolean and other.value.boolean:
        return (choice & then) | (~choice & other)
    return where(choice, then, other)


def _div(x: Any, y: Any, rounding_mode: Any = None) -> Any:
    """The term ``torch.div(x, y, rounding_mode=...)``, computed in the order of PyTorch's kernel."""
    y = x.lift(y)
    quotient = x / y
    if rounding_mode is None:
        return quotient
    if rounding_mode == "trunc":
        return apply("trunc", quotient)
    remainder = apply("fmod", x, y)
    exact = (x - remainder) / y
    exact = where(remainder.ne(0) & _signs_differ(remainder, y), exact - 1, exact)
    floor = apply("floor", exact)
    floor = where(exact - floor > 0.5, floor + 1, floor)
    floor = where(exact.ne(0), floor, apply("copysign", 0, quotient))
    return where(y.eq(0), quotient, floor)


def _signs_differ(x: Any, y: Any) -> Any:
    """Whether one of two numbers is negative and the other is not."""
    return (x < 0) ^ (y < 0)


def _remainder(x: Any, y: Any) -> Any:
    """The terms of ``torch.remainder``, which has the sign of the divisor `y`."""
    y = x.lift(y) if isinstance(x, Term) else y
    remainder = apply("fmod", x, y)
    return where(remainder.ne(0) & _signs_differ(remainder, y), remainder + y, remainder)


def _round(x: Any, decimals: Any = 0) -> Any:
    """The terms of ``torch.round``, refused with `decimals`."""
    if decimals:
        raise Unsupported(f"round with decimals={decimals}")
    return apply("round", x)


def _nan_to_num(x: Any, nan: Any, high: Any, low: Any) -> Any:
    """The terms of ``torch.nan_to_num``, with numbers for NaN and both infinities."""
    result = where(x.ne(x), nan, x)
    result = where(x.eq(math.inf), high, result)
    return where(x.eq(-math.inf), low, result)


def _ignoring_nan(order: str) -> Rule:
    """The rule of a maximum or minimum that is the other number if one is NaN."""
    return lambda x, y: where(apply(order, x, y) | y.ne(y), x, y)


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    """The terms of ``torch.lerp``, which PyTorch starts from the nearer end."""
    weight, difference = start.lift(weight), end - start
    near = abs(weight) < 0.5
    return apply("fma", where(near, weight, weight - 1), difference, where(near, start, end))


def _hardtanh(x: Any, low: Any = -1, high: Any = 1) -> Any:
    """The terms of ``torch.nn.functional.hardtanh``: `x` between `low` and `high`."""
    high = x.lift(high)
    return apply("minimum", high, apply("maximum", low, x))


def _elu(x: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    """The terms of ``scale * elu(x)`` with its parameters."""
    below = times(apply("elu", times(x, input_scale)), alpha * scale)
    return where(x < 0, below, times(x, scale))


def _elu_backward(grad: Any, alpha: Any, scale: Any, input_scale: Any, is_result: Any, x: Any) -> Any:
    """The gradient of ELU; `x` is its result if `is_result`, else its input."""
    below = times(grad, input_scale)
    if is_result:
        below = below * (x + float(alpha * scale))
    else:
        below = below * times(apply("exp", times(x, input_scale)), alpha * scale)
    return where(x > 0, times(grad, scale), below)  # NaN for NaN


def _softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """``log(1 + exp(beta x)) / beta``, or `x` where ``beta x > threshold``."""
    scaled = times(x, beta)
    smooth = apply("softplus", scaled)
    smooth = smooth if beta == 1 else smooth / float(beta)
    return where(scaled > threshold, x, smooth)


def _softplus_backward(grad: Any, x: Any, beta: Any, threshold: Any) -> Any:
    """The gradient of softplus, from the gradient `grad` of its result."""
    scaled = times(x, beta)
    smooth = grad * apply("sigmoid", scaled)
    return where(scaled > threshold, grad, smooth)


_OPTIONS = {"div": ("rounding_mode",), "addcmul": ("value",), "addcdiv": ("value",), "round": ("decimals",)}
"""By ATen operation: keyword arguments that its rule takes."""
_IGNORED_OPTIONS = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit")
"""Keyword arguments that do not change the numbers."""

COMPOSED: dict[str, Rule] = {
    **dict.fromkeys(("leaky_relu", "_prelu_kernel"), lambda x, slope=0.01: where(x > 0, x, x * slope)),
    "leaky_relu_backward": lambda grad, x, slope, is_result: where(x > 0, grad, grad * slope),
    "hardtanh": _hardtanh,
    "hardtanh_backward": lambda grad, x, low, high: where((x > low) & (x < high), grad, 0),
    "relu6": lambda x: _hardtanh(x, 0, 6),
    "threshold": lambda x, threshold, other: where(x <= threshold, other, x),
    "threshold_backward": lambda grad, x, threshold: where(x <= threshold, 0, grad),
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha),
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "log_sigmoid": lambda x: -apply("softplus", -x),
    "log_sigmoid_backward": lambda grad, x, buffer: grad * apply("sigmoid", -x),
    "sigmoid_backward": lambda grad, y: grad * ((1 - y) * y),
    "tanh_backward": lambda grad, y: grad * (1 - y * y),
    **dict.fromkeys(("detach", "alias", "clone", "lift_fresh_copy", "lift_fresh", "positive"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "expand", "reshape", "contiguous"), _same),
    "_to_copy": _same,  # `translate` converts the result to a boolean or a number
    **dict.fromkeys(("zeros_like", "empty_like"), lambda *_: 0),
    "ones_like": lambda *_: 1,
    **dict.fromkeys(("copy", "fill", "full_like"), lambda _, fill, *__: fill),
    "rsub": lambda x, y, alpha=1: _direct(OPERATIONS["sub"])(y, x, alpha),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1 / x,
    "pow": _power,
    "rsqrt": lambda x: _power(x, -0.5),
    "relu": lambda x: _clamp(x, 0),
    **dict.fromkeys(("clamp", "clamp_min"), _clamp),
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "where": _where,
    "masked_fill": lambda x, mask, fill: _where(mask, fill, x),
    "div": _div,
    "remainder": _remainder,
    "round": _round,
    "frac": lambda x: x - apply("trunc", x),
    "heaviside": lambda x, at_zero: where(x.eq(0), at_zero, apply("to_float", x > 0)),
    "nan_to_num": _nan_to_num,
    "isnan": lambda x: x.ne(x),
    "isinf": lambda x: abs(x).eq(math.inf),
    "signbit": lambda x: apply("copysign", 1, x) < 0,
    "fmax": _ignoring_nan("gt"),
    "fmin": _ignoring_nan("lt"),
    "lerp": _lerp,
    "addcmul": lambda x, y, z, *, value=1: apply("fma", times(y, value), z, x),  # contracted as in PyTorch
    "addcdiv": lambda x, y, z, *, value=1: x + times(y, value) / z,
}

_BOOLEAN_RULES = frozenset(
    {
        *("isnan", "isinf", "signbit", "zeros_like", "ones_like", "full_like", "where", "masked_fill"),
        *(name for name, rule in COMPOSED.items() if rule is _same),
    }
)
"""Composed operations whose rules support booleans."""
