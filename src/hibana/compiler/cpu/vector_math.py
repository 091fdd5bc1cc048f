"""Transcendental functions in hibana's own code, for which no library has PyTorch's bits.

All but :func:`exp_of_float32` work on vectors of float64. A float32 result is computed in float64 and rounded
once; the polynomials here are good for that alone, so float64 results come from the C library's functions.
"""

import math
from collections.abc import Callable, Sequence

from hibana.runtime.kernels import DOUBLE, Code, Function, Value, external_function

VECTOR = 8
"""Numbers that are computed at a time."""


class Numbers:
    """Functions of vectors of float64 that other functions are made of."""

    def __init__(self, code: Code, *, single: bool) -> None:
        self.code = code
        self.single = single
        """Whether the result is rounded to float32."""

    def library(self, name: str, *arguments: Value) -> Value:
        """The C library's function of each number."""
        return lane_by_lane(self.code, external_function(name, DOUBLE, *[DOUBLE] * len(arguments)), arguments)

    def exp(self, x: Value) -> Value:
        if not self.single:
            return self.library("exp", x)
        x = (x > 800).select(800, x)
        x = (x < -800).select(-800, x)
        count = (x * (1 / math.log(2))).call("rint")
        rest = count.fma(-math.log(2), x)
        result = x.lift(1 / math.factorial(12))
        for power in range(11, -1, -1):
            result = result.fma(rest, 1 / math.factorial(power))
        half = (count * 0.5).call("floor")
        return result * _power_of_two(half) * _power_of_two(count - half)

    def decay(self, x: Value) -> Value:
        """``exp(-|x|)``."""
        return self.exp(-abs(x))

    def log1p_of_part(self, x: Value) -> Value:
        """``log(1 + x)`` for `x` from 0 to 1."""
        if not self.single:
            return self.library("log1p", x)
        ratio = x / (x + 2)
        square = ratio * ratio
        result = x.lift(2 / 29)
        for odd in range(27, 0, -2):
            result = result.fma(square, 2 / odd)
        return result * ratio


def exp_of_float32(x: Value) -> Value:
    """``exp(x)`` of float32 numbers within 1 ulp, 0 where that is below 2.5e-38, without a call.

    It is for gradients, which need not have PyTorch's bits: ``exp(x) = 2**n exp(x - n log(2))``, with the
    series of the latter. The bound holds where the processor fuses a product with a sum.
    """
    shift = 1.5 * 2**23  # a number that is added to this is rounded to an integer, in its lowest bits
    shifted = x.fused(x.lift(1 / math.log(2)), x.lift(shift))
    n = shifted - shift
    part = 355 / 512  # of log(2), whose product with n is exact
    rest = n.fused(x.lift(part - math.log(2)), x - n * part)
    result = x.lift(1 / math.factorial(7))
    for power in range(6, -1, -1):
        result = result.fused(rest, x.lift(1 / math.factorial(power)))
    result = (result.float_bits() + (shifted.float_bits() << 23)).float_from_bits()
    result = (x < -86.6).select(0, result)
    return (x <= 88.7).select(result, x * math.inf)  # NaN remains


def _power_of_two(count: Value) -> Value:
    return ((count.truncate() + 1023) << 52).float_from_bits()


def lane_by_lane(code: Code, function: Function, arguments: Sequence[Value]) -> Value:
    """The vector of what `function` gives for each lane of the `arguments`."""
    type_ = arguments[0].type
    result = arguments[0].undefined(type_)
    for lane in range(type_.width):
        result = result.with_lane(lane, function(code, *[x.lane(lane) for x in arguments]))
    return result


def _sigmoid(n: Numbers, x: Value) -> Value:
    part = n.decay(x)
    above, below = (x < 0).select(part, 1), part + 1
    found = above / below
    if n.single:
        return found
    lost = part - (below - 1)  # what the sum and the quotient lost to rounding is added
    return found + ((-found).fma(below, above) - found * lost) / below


def _softplus(n: Numbers, x: Value) -> Value:
    return (x > 0).select(x, 0) + n.log1p_of_part(n.decay(x))


OWN: dict[str, Callable[..., Value]] = {
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "elu": lambda n, x: (x < 0).select(n.library("expm1", x), x),
}
"""How each operation is computed of vectors."""
