"""ATen operations in terms of the table of operations (:mod:`hibana.compiler.graph.ops`).

A row of the table names the ATen operations that are the same; ``COMPOSED`` has the others, as expressions of
several rows. Each row has one meaning, the one IEEE and PyTorch give it; a backend must compute it without
contraction or reassociation. Compositions do what PyTorch's kernels do (ATen/native/cpu), in their order, so
that what IEEE determines is the same to the last bit.
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
    """The value that the ATen operation `target` makes of `args`.

    Args:
        target: the operation.
        args: its arguments, nodes and numbers.
        kwargs: its keyword arguments.
        argument: an fx argument (a node or a number) to a value.
        make: ``make(op, *values)``.
        boolean: whether PyTorch says that a truth value comes of it.

    Raises:
        Unsupported: if there is no rule for `target`, or not for these arguments.
    """
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    rule = COMPOSED.get(name)
    row = None if rule else next((row for row in OPERATIONS.values() if name in row.aten), None)
    if row is not None:
        rule = _direct(OPERATIONS[row.on_booleans] if boolean and row.on_booleans else row)
    if boolean and not (row.boolean or row.on_booleans if row else name in _MAY_BE_BOOLEAN):
        raise Unsupported(f"{target._schema.name} of truth values")
    if rule is None:
        raise Unsupported(f"{target._schema.name} is not a pointwise operation that hibana compiles")
    said = {k: v for k, v in kwargs.items() if k in _SAID_BY_NAME.get(name, ())}
    refused = {
        k: v for k, v in kwargs.items() if k not in said and k not in _OF_NO_MATTER and v not in (1, None)
    }
    if refused:
        raise Unsupported(f"{target._schema.name} with {refused}")
    terms = [Term(argument, make, a) if isinstance(a, torch.fx.Node) else a for a in args]
    found = rule(*terms, **said)
    value = found.value if isinstance(found, Term) else argument(found)
    return make("to_bool" if boolean else "to_float", value)


def _direct(row: Operation) -> Rule:
    """The rule of an operation that `row` is; arguments beyond its own, such as ``alpha``, must be 1."""

    def rule(*args: Any) -> Any:
        if any(factor != 1 for factor in args[row.arity :]):
            raise Unsupported(f"{row.name} with alpha={args[row.arity]}")
        term = next(a for a in args if isinstance(a, Term))
        given = [term.lift(argument) for argument in args[: row.arity]]
        return apply(row.name, *([apply("to_bool", a) for a in given] if row.takes_booleans else given))

    return rule


def _same(x: Any, *_: Any) -> Any:
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
"""Exponents for which PyTorch computes another operation."""


def _power(x: Any, exponent: Any) -> Any:
    known = isinstance(x, Term) and not isinstance(exponent, Term) and exponent in _POWERS
    return _POWERS[exponent](x) if known else apply("pow", x, exponent)


def _bounded(op: str, x: Any, bound: Any) -> Any:
    """`x` and a bound: where they are zeros of two signs a number leaves `x` as it is, a tensor does not."""
    return apply(op, x, bound) if isinstance(bound, Term) else apply(op, bound, x)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    result = x if low is None else _bounded("maximum", x, low)
    return result if high is None else _bounded("minimum", result, high)


def _where(condition: Any, x: Any, y: Any) -> Any:
    gate = apply("to_bool", condition)
    one, other = gate.lift(x), gate.lift(y)
    if one.value.boolean and other.value.boolean:
        return (gate & one) | (~gate & other)
    return where(gate, one, other)


def _div(x: Any, y: Any, rounding_mode: Any = None) -> Any:
    y = x.lift(y)
    quotient = x / y
    if rounding_mode is None:
        return quotient
    if rounding_mode == "trunc":
        return apply("trunc", quotient)
    rest = apply("fmod", x, y)
    whole = (x - rest) / y
    whole = where(rest.ne(0) & _signs_differ(rest, y), whole - 1, whole)
    floor = apply("floor", whole)
    floor = where(whole - floor > 0.5, floor + 1, floor)
    found = where(whole.ne(0), floor, apply("copysign", 0, quotient))
    return where(y.eq(0), quotient, found)


def _signs_differ(x: Any, y: Any) -> Any:
    return (x < 0) ^ (y < 0)


def _remainder(x: Any, y: Any) -> Any:
    y = x.lift(y) if isinstance(x, Term) else y
    rest = apply("fmod", x, y)
    return where(rest.ne(0) & _signs_differ(rest, y), rest + y, rest)


def _round(x: Any, decimals: Any = 0) -> Any:
    if decimals:
        raise Unsupported(f"round with decimals={decimals}")
    return apply("round", x)


def _heaviside(x: Any, at_zero: Any) -> Any:
    above = apply("to_float", x > 0)
    return where(x.eq(0), at_zero, above)


def _nan_to_num(x: Any, nan: Any, high: Any, low: Any) -> Any:
    result = where(x.ne(x), nan, x)
    result = where(x.eq(math.inf), high, result)
    return where(x.eq(-math.inf), low, result)


def _passing_numbers(order: str) -> Rule:
    return lambda x, y: where(apply(order, x, y) | y.ne(y), x, y)


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    weight, difference = start.lift(weight), end - start
    near = abs(weight) < 0.5
    return apply("fma", where(near, weight, weight - 1), difference, where(near, start, end))


def _addcmul(x: Any, y: Any, z: Any, *, value: Any = 1) -> Any:
    return apply("fma", times(y, value), z, x)  # as it is compiled


def _hardtanh(x: Any, low: Any = -1, high: Any = 1) -> Any:
    high = x.lift(high)
    return apply("minimum", high, apply("maximum", low, x))


def _elu(x: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    below = times(apply("elu", times(x, input_scale)), alpha * scale)
    return where(x < 0, below, times(x, scale))


def _elu_backward(grad: Any, alpha: Any, scale: Any, input_scale: Any, is_result: Any, x: Any) -> Any:
    below = times(grad, input_scale)
    if is_result:
        below = below * (x + float(alpha * scale))
    else:
        below = below * times(apply("exp", times(x, input_scale)), alpha * scale)
    return where(x > 0, times(grad, scale), below)  # of NaN, NaN


def _softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """The expression of ``log(1 + exp(beta x)) / beta``, and of `x` where ``beta x > threshold``."""
    scaled = times(x, beta)
    smooth = apply("softplus", scaled)
    smooth = smooth if beta == 1 else smooth / float(beta)
    return where(scaled > threshold, x, smooth)


def _softplus_backward(grad: Any, x: Any, beta: Any, threshold: Any) -> Any:
    scaled = times(x, beta)
    smooth = grad * apply("sigmoid", scaled)
    return where(scaled > threshold, grad, smooth)


_SAID_BY_NAME = {
    "div": ("rounding_mode",),
    "addcmul": ("value",),
    "addcdiv": ("value",),
    "round": ("decimals",),
}
_OF_NO_MATTER = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit")

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
    "_to_copy": _same,  # a change of dtype shows in the result's, by which it becomes a truth value or not
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
    "heaviside": _heaviside,
    "nan_to_num": _nan_to_num,
    "isnan": lambda x: x.ne(x),
    "isinf": lambda x: abs(x).eq(math.inf),
    "signbit": lambda x: apply("copysign", 1, x) < 0,
    "fmax": _passing_numbers("gt"),
    "fmin": _passing_numbers("lt"),
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": lambda x, y, z, *, value=1: x + times(y, value) / z,
}

_MAY_BE_BOOLEAN = frozenset(
    {
        *("isnan", "isinf", "signbit", "zeros_like", "ones_like", "full_like", "where", "masked_fill"),
        *(name for name, rule in COMPOSED.items() if rule is _same),
    }
)
"""Composed operations that can give a truth value, and have a rule that does."""
