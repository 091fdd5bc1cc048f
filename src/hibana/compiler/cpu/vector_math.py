"""Transcendental functions of vectors, for operations that no library computes to PyTorch's bits.

All functions except :func:`exp_of_float32` work on vectors of float64. A float32 result is computed in
float64 and rounded once. The polynomials here are not accurate enough for float64 results, which use the C
library.
"""

import math
from collections.abc import Callable, Sequence

from hibana.compiler.draws import LARGEST_RATE
from hibana.runtime.kernels import DOUBLE, Code, Function, Value, external_function

VECTOR = 8
"""Numbers in a vector."""


class Numbers:
    """The building blocks of functions of float64 vectors."""

    def __init__(self, code: Code, *, single: bool) -> None:
        """Stores the `code` to write to, and whether the result is rounded to float32 (`single`)."""
        self.code = code
        self.single = single
        """Whether the result is rounded to float32."""

    def library(self, name: str, *arguments: Value) -> Value:
        """The C library's function `name` of each number."""
        return lane_by_lane(self.code, external_function(name, DOUBLE, *[DOUBLE] * len(arguments)), arguments)

    def exp(self, x: Value) -> Value:
        """``exp(x)``."""
        if not self.single:
            return self.library("exp", x)
        x = (x > 800).select(800, x)
        x = (x < -800).select(-800, x)
        count = (x * (1 / math.log(2))).call("rint")
        remainder = count.fma(-math.log(2), x)
        result = x.lift(1 / math.factorial(12))
        for power in range(11, -1, -1):
            result = result.fma(remainder, 1 / math.factorial(power))
        half = (count * 0.5).call("floor")
        return result * _power_of_two(half) * _power_of_two(count - half)

    def decay(self, x: Value) -> Value:
        """``exp(-|x|)``."""
        return self.exp(-abs(x))

    def log1p_of_fraction(self, x: Value) -> Value:
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
    """``exp(x)`` of float32 numbers within 1 ulp, 0 for results below 2.5e-38, without a call.

    Gradients use it, which need not have PyTorch's bits: ``exp(x) = 2**n exp(x - n log(2))``, and a series
    for the second factor. The bound holds if the processor has fused multiply-add.
    """
    shift = 1.5 * 2**23  # adding it rounds a number to an integer, which is in the lowest bits of the sum
    shifted = x.fused(x.lift(1 / math.log(2)), x.lift(shift))
    n = shifted - shift
    high = 355 / 512  # the leading bits of log(2): its product with n is exact
    remainder = n.fused(x.lift(high - math.log(2)), x - n * high)
    result = x.lift(1 / math.factorial(7))
    for power in range(6, -1, -1):
        result = result.fused(remainder, x.lift(1 / math.factorial(power)))
    result = (result.float_bits() + (shifted.float_bits() << 23)).float_from_bits()
    result = (x < -86.6).select(0, result)
    return (x <= 88.7).select(result, x * math.inf)  # NaN stays NaN


def poisson(code: Code, u: Value, rate: Value, p_zero: Value) -> Value:
    """The numbers of :func:`hibana.compiler.draws.poisson`; the loop over k runs until all lanes are done."""
    count, probability = code.variable(u.lift(0)), code.variable(p_zero)
    total, k = code.variable(p_zero), code.variable(u.constant(u.type.of(1), 0))
    is_above = u >= p_zero
    with code.when(is_above.word().differs(0)), code.do_while() as repeat_if:
        k.value = k.value + 1
        is_above = u >= total.value
        count.value = is_above.select(count.value + 1, count.value)
        probability.value = probability.value * (rate * (1 / k.value).spread(u.type.width))
        grown = total.value + probability.value
        total.value = (grown > total.value).select(grown, math.inf)
        repeat_if((u >= total.value).word().differs(0))
    is_valid = (rate >= 0) & (rate <= LARGEST_RATE)
    return is_valid.select(count.value, math.nan)


IN_BLOCK: dict[str, Callable[..., Value]] = {"exp": lambda _, x: exp_of_float32(x), "poisson": poisson}
"""The function ``(code, *vectors) -> vector`` of each operation that a block of neurons computes itself."""


def _power_of_two(count: Value) -> Value:
    """``2**count`` as float64 numbers, for whole numbers `count`."""
    return ((count.truncate() + 1023) << 52).float_from_bits()


def lane_by_lane(code: Code, function: Function, arguments: Sequence[Value]) -> Value:
    """The vector of the results of `function` for each lane of the `arguments`."""
    type_ = arguments[0].type
    result = arguments[0].undefined(type_)
    for lane in range(type_.width):
        result = result.with_lane(lane, function(code, *[x.lane(lane) for x in arguments]))
    return result


def _sigmoid(n: Numbers, x: Value) -> Value:
    """``1 / (1 + exp(-x))``; in float64 the rounding errors of sum and quotient are corrected."""
    decay = n.decay(x)
    numerator, denominator = (x < 0).select(decay, 1), decay + 1
    quotient = numerator / denominator
    if n.single:
        return quotient
    sum_error = decay - (denominator - 1)
    quotient_error = (-quotient).fma(denominator, numerator)
    return quotient + (quotient_error - quotient * sum_error) / denominator


def _softplus(n: Numbers, x: Value) -> Value:
    """``log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    return (x > 0).select(x, 0) + n.log1p_of_fraction(n.decay(x))


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "elu": lambda n, x: (x < 0).select(n.library("expm1", x), x),
}
"""The function ``(numbers, *vectors) -> vector`` of each operation."""
