"""Transcendental functions of vectors, for operations that no library computes to PyTorch's bits.

All functions except :func:`exp_of_float32` work on vectors of float64: a float32 result is computed in
float64 and rounded once.
"""

import math
from collections.abc import Callable, Sequence

from hibana.compiler.draws import LARGEST_RATE
from hibana.compiler.pointwise import POINTWISE
from hibana.runtime.kernels import DOUBLE, Code, Function, Value, external_function

VECTOR = 8
"""Numbers in a vector."""


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
    total, k = code.variable(p_zero), code.variable(0, u.type.of(1))
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


IN_BLOCK: dict[str, Callable[..., Value]] = {**POINTWISE, "exp": exp_of_float32}
"""The function of vectors for each operation that a block of neurons computes itself."""


def lane_by_lane(code: Code, function: Function, arguments: Sequence[Value]) -> Value:
    """The vector of the results of `function` for each lane of the `arguments`."""
    type_ = arguments[0].type
    result = arguments[0].undefined(type_)
    for lane in range(type_.width):
        result = result.with_lane(lane, function(code, *[x.lane(lane) for x in arguments]))
    return result


def _library(code: Code, name: str, x: Value) -> Value:
    """The C library's function `name` of each number of a float64 vector."""
    return lane_by_lane(code, external_function(name, DOUBLE, DOUBLE), [x])


def _sigmoid(code: Code, x: Value) -> Value:
    """``1 / (1 + exp(-x))``; the rounding errors of sum and quotient are corrected."""
    decay = _library(code, "exp", -abs(x))
    numerator, denominator = (x < 0).select(decay, 1), decay + 1
    quotient = numerator / denominator
    sum_error = decay - (denominator - 1)
    quotient_error = (-quotient).fma(denominator, numerator)
    return quotient + (quotient_error - quotient * sum_error) / denominator


def _softplus(code: Code, x: Value) -> Value:
    """``log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    return (x > 0).select(x, 0) + _library(code, "log1p", _library(code, "exp", -abs(x)))


FUNCTIONS: dict[str, Callable[[Code, Value], Value]] = {
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "elu": lambda code, x: (x < 0).select(_library(code, "expm1", x), x),
}
"""The function of a float64 vector for each operation."""
