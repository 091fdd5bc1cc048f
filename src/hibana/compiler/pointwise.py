"""The operations of a step on values of the loop under construction, numbers or vectors of them."""

import operator
from collections.abc import Callable

from hibana.runtime.kernels import Value

__all__ = ["POINTWISE"]


def _extreme(x: Value, y: Value, is_first: Value) -> Value:
    """`x` where `is_first` is true or `x` is NaN, else `y`; of zeros with different signs it is `y`."""
    return (is_first | x.differs(x)).select(x, y)


def _function(name: str) -> Callable[..., Value]:
    """The function `name`, which LLVM and C know."""
    return lambda *values: values[0].call(name, *values[1:])


POINTWISE: dict[str, Callable[..., Value]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": Value.equals,
    "ne": Value.differs,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "to_bool": lambda x: x.differs(0),
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "abs": abs,
    "root": _function("sqrt"),
    "floor": _function("floor"),
    "ceil": _function("ceil"),
    "trunc": _function("trunc"),
    "round": _function("roundeven"),
    "maximum": lambda x, y: _extreme(x, y, x > y),
    "minimum": lambda x, y: _extreme(x, y, x < y),
    "sign": lambda x: (x > 0).select(x.lift(1), 0) - (x < 0).select(x.lift(1), 0),
    "copysign": _function("copysign"),
    "fma": _function("fma"),
    "fmod": operator.mod,
    "where": Value.select,
}
"""The function of values for each operation that IEEE 754 determines."""
