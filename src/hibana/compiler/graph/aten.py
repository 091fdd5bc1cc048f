"""Rules that turn operations of ATen into operations of the table (:mod:`hibana.compiler.graph.ops`).

Each operation of the table has one meaning, the one IEEE and PyTorch give it; an emitter must say it without
contraction or reassociation. Serving another of PyTorch's means adding a line to ``_RULES``.
"""

from collections.abc import Callable
from typing import Any

import torch

from hibana.compiler.graph.activations import ACTIVATIONS
from hibana.compiler.graph.arithmetic import ARITHMETIC
from hibana.compiler.graph.choices import Make
from hibana.compiler.graph.ops import CALLS, COMPARISONS, Unsupported

__all__ = ["translate"]


def translate(
    target: torch._ops.OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argument: Callable[[Any], Any],
    make: Make,
    *,
    boolean: bool = False,
) -> Any:
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
    rule = _RULES.get(name)
    if boolean and name in _ARITHMETIC:
        rule = _logical(_ARITHMETIC[name])
    elif boolean and name not in _BOOLEAN_RULES:
        raise Unsupported(f"{target._schema.name} of truth values")
    if rule is None:
        raise Unsupported(f"{target._schema.name} is not a pointwise operation that hibana compiles")
    said = {k: v for k, v in kwargs.items() if k in _SAID_BY_NAME.get(name, ())}
    refused = {
        k: v for k, v in kwargs.items() if k not in said and k not in _OF_NO_MATTER and v not in (1, None)
    }
    if refused:
        raise Unsupported(f"{target._schema.name} with {refused}")
    return make("to_bool" if boolean else "to_float", rule(make, argument, *args, **said))


def _operation(op: str) -> Make:
    return lambda make, value, *args: make(op, *(value(a) for a in args))


def _same(make: Make, value: Make, x: Any, *_: Any) -> Any:
    return value(x)


def _constant(number: int) -> Make:
    return lambda make, value, *_: value(number)


def _plain(op: str) -> Make:
    """An operation of two arguments; a third, PyTorch's ``alpha``, must be one."""

    def rule(make: Make, value: Make, x: Any, y: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            raise Unsupported(f"{op} with alpha={alpha}")
        return make(op, value(x), value(y))

    return rule


def _reversed_sub(make: Make, value: Make, x: Any, y: Any, alpha: Any = 1) -> Any:
    if alpha != 1:
        raise Unsupported(f"rsub with alpha={alpha}")
    return make("sub", value(y), value(x))


def _power(make: Make, value: Make, x: Any, exponent: Any) -> Any:
    """``x ** exponent``: for some exponents PyTorch computes another operation."""
    if isinstance(x, torch.fx.Node) and not isinstance(exponent, torch.fx.Node):
        base, one = value(x), value(1)
        if exponent == 0:
            return one
        if exponent == 1:
            return base
        if exponent == 2:
            return make("mul", base, base)
        if exponent == 3:
            return make("mul", make("mul", base, base), base)
        if exponent == 0.5:
            return make("sqrt", base)
        if exponent == -0.5:
            return make("div", one, make("root", base))
        if exponent == -1:
            return make("div", one, base)
        if exponent == -2:
            return make("div", one, make("mul", base, base))
    return make("pow", value(x), value(exponent))


def _clamp(make: Make, value: Make, x: Any, low: Any = None, high: Any = None) -> Any:
    result = value(x)
    if low is not None:
        result = _bounded(make, value, "maximum", result, low)
    if high is not None:
        result = _bounded(make, value, "minimum", result, high)
    return result


def _clamp_max(make: Make, value: Make, x: Any, high: Any) -> Any:
    return _bounded(make, value, "minimum", value(x), high)


def _bounded(make: Make, value: Make, op: str, x: Any, bound: Any) -> Any:
    """`x` and a bound: where they are zeros of two signs a number leaves `x` as it is, a tensor does not."""
    return make(op, x, value(bound)) if isinstance(bound, torch.fx.Node) else make(op, value(bound), x)


def _where(make: Make, value: Make, condition: Any, x: Any, y: Any) -> Any:
    gate, one, other = make("to_bool", value(condition)), value(x), value(y)
    if one.boolean and other.boolean:
        return make("or", make("and", gate, one), make("and", make("not", gate), other))
    return make("where", gate, make("to_float", one), make("to_float", other))


def _masked_fill(make: Make, value: Make, x: Any, mask: Any, fill: Any) -> Any:
    return _where(make, value, mask, fill, x)


def _logical(op: str) -> Make:
    return lambda make, value, *args: make(op, *(make("to_bool", value(a)) for a in args))


def _threshold_backward(make: Make, value: Make, grad: Any, x: Any, threshold: Any) -> Any:
    return make("where", make("le", value(x), value(threshold)), value(0), value(grad))


def _tanh_backward(make: Make, value: Make, grad: Any, y: Any) -> Any:
    square = make("mul", value(y), value(y))
    return make("mul", value(grad), make("sub", value(1), square))


def _reciprocal(make: Make, value: Make, x: Any) -> Any:
    return make("div", value(1), value(x))


def _square(make: Make, value: Make, x: Any) -> Any:
    return make("mul", value(x), value(x))


_SAID_BY_NAME = {
    "div": ("rounding_mode",),
    "gelu": ("approximate",),
    "gelu_backward": ("approximate",),
    "addcmul": ("value",),
    "addcdiv": ("value",),
    "round": ("decimals",),
}
_OF_NO_MATTER = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit")

_RULES: dict[str, Make] = {
    **{op: _operation(op) for op in (*COMPARISONS, *CALLS)},
    **{op: _operation(op) for op in ("neg", "abs", "mul", "maximum", "minimum", "floor", "ceil", "trunc")},
    **{op: _operation(op) for op in ("sign", "copysign", "fmod")},
    **ACTIVATIONS,
    **ARITHMETIC,
    **dict.fromkeys(("detach", "alias", "clone", "lift_fresh_copy", "lift_fresh", "positive"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "expand", "reshape", "contiguous"), _same),
    "zeros_like": _constant(0),
    "empty_like": _constant(0),
    "fill": lambda make, value, x, fill: value(fill),
    "ones_like": _constant(1),
    "full_like": lambda make, value, x, fill: value(fill),
    "add": _plain("add"),
    "sub": _plain("sub"),
    "rsub": _reversed_sub,
    "sgn": _operation("sign"),
    "square": _square,
    "reciprocal": _reciprocal,
    "pow": _power,
    "rsqrt": lambda make, value, x: _power(make, value, x, -0.5),
    "relu": lambda make, value, x: _clamp(make, value, x, 0),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "where": _where,
    "masked_fill": _masked_fill,
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_xor": _logical("xor"),
    "logical_not": _logical("not"),
    "bitwise_and": _logical("and"),
    "bitwise_or": _logical("or"),
    "bitwise_xor": _logical("xor"),
    "bitwise_not": _logical("not"),
    "_to_copy": _same,  # a change of dtype shows in the result's, by which it becomes a truth value or not
    "threshold_backward": _threshold_backward,
    "tanh_backward": _tanh_backward,
}

_ARITHMETIC = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}
"""Arithmetic of truth values alone: one plus one is one."""
_BOOLEAN_RULES = frozenset(
    {
        *COMPARISONS,
        *("isnan", "isinf", "signbit", "zeros_like", "ones_like", "full_like", "where", "masked_fill"),
        *(name for name, rule in _RULES.items() if rule is _same),
        *(name for name in _RULES if name.startswith(("logical_", "bitwise_"))),
    }
)
"""What can give a truth value, and has a rule that does."""
