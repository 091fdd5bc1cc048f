"""Rules that turn an arithmetic operation of ATen into several of the table.

Each does what PyTorch's kernel does (ATen/native/cpu), in its order, so that what IEEE determines is the same
to the last bit. ``make(operation, *values)`` makes a value, ``value`` gives that of an argument.
"""

import math
from typing import Any

from hibana.compiler.graph.choices import Make, times, where
from hibana.compiler.graph.ops import Unsupported

__all__ = ["ARITHMETIC"]


def _div(make: Make, value: Make, x: Any, y: Any, rounding_mode: Any = None) -> Any:
    x, y = value(x), value(y)
    quotient = make("div", x, y)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "trunc":
        return make("trunc", quotient)
    rest = make("fmod", x, y)
    whole = make("div", make("sub", x, rest), y)
    less = make("and", make("ne", rest, value(0)), _signs_differ(make, value, rest, y))
    whole = where(make, less, make("sub", whole, value(1)), whole)
    floor = make("floor", whole)
    floor = where(
        make, make("gt", make("sub", whole, floor), value(0.5)), make("add", floor, value(1)), floor
    )
    found = where(make, make("ne", whole, value(0)), floor, make("copysign", value(0), quotient))
    return where(make, make("eq", y, value(0)), quotient, found)


def _signs_differ(make: Make, value: Make, x: Any, y: Any) -> Any:
    return make("xor", make("lt", x, value(0)), make("lt", y, value(0)))


def _remainder(make: Make, value: Make, x: Any, y: Any) -> Any:
    y = value(y)
    rest = make("fmod", value(x), y)
    other = make("and", make("ne", rest, value(0)), _signs_differ(make, value, rest, y))
    return where(make, other, make("add", rest, y), rest)


def _round(make: Make, value: Make, x: Any, decimals: Any = 0) -> Any:
    if decimals:
        raise Unsupported(f"round with decimals={decimals}")
    return make("round", value(x))


def _frac(make: Make, value: Make, x: Any) -> Any:
    return make("sub", value(x), make("trunc", value(x)))


def _heaviside(make: Make, value: Make, x: Any, at_zero: Any) -> Any:
    x = value(x)
    above = make("to_float", make("gt", x, value(0)))
    return where(make, make("eq", x, value(0)), value(at_zero), above)


def _nan_to_num(make: Make, value: Make, x: Any, nan: Any, high: Any, low: Any) -> Any:
    x = value(x)
    result = where(make, make("ne", x, x), value(nan), x)
    result = where(make, make("eq", x, value(math.inf)), value(high), result)
    return where(make, make("eq", x, value(-math.inf)), value(low), result)


def _isnan(make: Make, value: Make, x: Any) -> Any:
    return make("ne", value(x), value(x))


def _isinf(make: Make, value: Make, x: Any) -> Any:
    return make("eq", make("abs", value(x)), value(math.inf))


def _signbit(make: Make, value: Make, x: Any) -> Any:
    return make("lt", make("copysign", value(1), value(x)), value(0))


def _fmax(make: Make, value: Make, x: Any, y: Any) -> Any:
    return _passing_numbers(make, value(x), value(y), "gt")


def _fmin(make: Make, value: Make, x: Any, y: Any) -> Any:
    return _passing_numbers(make, value(x), value(y), "lt")


def _passing_numbers(make: Make, x: Any, y: Any, order: str) -> Any:
    first = make("or", make(order, x, y), make("ne", y, y))
    return where(make, first, x, y)


def _xlogy(make: Make, value: Make, x: Any, y: Any) -> Any:
    x, y = value(x), value(y)
    found = where(make, make("eq", x, value(0)), value(0), make("xlogy", x, y))
    return where(make, make("ne", y, y), y, found)


def _lerp(make: Make, value: Make, start: Any, end: Any, weight: Any) -> Any:
    start, end, weight = value(start), value(end), value(weight)
    difference = make("sub", end, start)
    near = make("lt", make("abs", weight), value(0.5))
    other = make("sub", weight, value(1))
    return make("fma", where(make, near, weight, other), difference, where(make, near, start, end))


def _addcmul(make: Make, value: Make, x: Any, y: Any, z: Any, *, value_: Any = 1) -> Any:
    return make("fma", times(make, value, value(y), value_), value(z), value(x))  # as it is compiled


def _addcdiv(make: Make, value: Make, x: Any, y: Any, z: Any, *, value_: Any = 1) -> Any:
    return make("add", value(x), make("div", times(make, value, value(y), value_), value(z)))


def _factor(rule: Make) -> Make:
    """`rule`, whose ``value_`` PyTorch calls ``value``."""

    def named(make: Make, of: Make, *args: Any, **kwargs: Any) -> Any:
        return rule(make, of, *args, **{f"{name}_": said for name, said in kwargs.items()})

    return named


ARITHMETIC: dict[str, Make] = {
    "div": _div,
    "remainder": _remainder,
    "round": _round,
    "frac": _frac,
    "heaviside": _heaviside,
    "nan_to_num": _nan_to_num,
    "isnan": _isnan,
    "isinf": _isinf,
    "signbit": _signbit,
    "fmax": _fmax,
    "fmin": _fmin,
    "xlogy": _xlogy,
    "lerp": _lerp,
    "addcmul": _factor(_addcmul),
    "addcdiv": _factor(_addcdiv),
}
