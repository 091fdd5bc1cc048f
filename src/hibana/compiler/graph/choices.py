"""Helpers of the rules: a select between two values, and a product that may be by one."""

from collections.abc import Callable
from typing import Any

__all__ = ["Make", "times", "where"]

Make = Callable[..., Any]


def where(make: Make, condition: Any, then: Any, other: Any) -> Any:
    """`then` where the `condition` holds, else `other`."""
    return make("where", condition, make("to_float", then), make("to_float", other))


def times(make: Make, value: Make, x: Any, factor: Any) -> Any:
    """`x` times a `factor` that is known."""
    return x if factor == 1 else make("mul", x, value(float(factor)))
