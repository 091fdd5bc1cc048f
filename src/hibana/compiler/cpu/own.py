"""Transcendental functions in hibana's own code, for which no library has PyTorch's bits."""

import math
from collections.abc import Callable
from fractions import Fraction

from hibana.compiler.cpu.numbers import Numbers
from hibana.compiler.cpu.pairs import Pair, pair, pair_expm1, pair_product, pair_sum, two_product, two_sum
from hibana.runtime.kernels import Value

__all__ = ["OWN"]


def _decay(n: Numbers, x: Value) -> Value:
    return n.exp(-abs(x))


def _quotient(n: Numbers, above: Value, below: Value, above_left: Value | None, below_left: Value) -> Pair:
    """A quotient, and what is to be added to it for what it and its arguments lost to rounding."""
    found = above / below
    if n.single:
        return found, found.lift(0)
    left = (-found).fma(below, above)
    if above_left is not None:
        left += above_left
    return found, (left - found * below_left) / below


def _logistic(n: Numbers, x: Value) -> Pair:
    part = _decay(n, x)
    below = part + 1
    lost = part - (below - 1)
    return _quotient(n, (x < 0).select(part, 1), below, None, lost)


def _product(n: Numbers, x: Value, found: Value, left: Value) -> Value:
    """`x` times the sum of the other two, rounded once."""
    high = x * found
    if n.single:
        return high
    whole = high + x.fma(left, x.fma(found, -high))
    return (abs(high) < math.inf).select(whole, high)  # of infinities there is no rest


def _sigmoid(n: Numbers, x: Value) -> Value:
    found, left = _logistic(n, x)
    return found + left


SMALL = -700.0
"""From which on downwards an exponential comes near the least number, which has few digits."""


def _times_small(
    n: Numbers, x: Value, found: Value, of: Value | None = None, left: Value | None = None
) -> Value:
    """`found`, but `x` times the exponential of itself, or of the sum `of` + `left`, where that is small."""
    if n.single:
        return found
    exponent = x if of is None else of
    near = (exponent < -800).select(-800, exponent)
    larger = n.exp(near + 64)
    factor = near if of is None else x
    high, low = two_product(factor, larger)
    if left is not None:
        low = high.fma(left, low)
    scale, scale_left = math.exp(-64), -7.361325221284214e-45
    small = high.fma(scale, high.fma(scale_left, low * scale))
    small += found * 0  # of minus infinity, NaN as PyTorch's
    return (exponent < SMALL).select(small, found)


def _silu(n: Numbers, x: Value) -> Value:
    return _times_small(n, x, _product(n, x, *_logistic(n, x)))


def _softplus(n: Numbers, x: Value) -> Value:
    return (x > 0).select(x, 0) + n.log1p_of_part(_decay(n, x))


def _mish(n: Numbers, x: Value) -> Value:
    """``x tanh(log(1 + exp(x)))``, a quotient of polynomials in the exponential of minus its size."""
    part = _decay(n, x)
    twice = part + part
    above = part.fma(part, twice)
    above_left = part.fma(part, twice - above)
    below = above + 2
    below_left = above_left + (above - (below - 2))
    more = twice + 1
    more_left = twice - (more - 1)
    most = twice.fma(part, more)
    most_left = more_left + twice.fma(part, more - most)
    sides = ((above, more), (below, most), (above_left, more_left), (below_left, most_left))
    found = _quotient(n, *((x < 0).select(negative, other) for negative, other in sides))
    return _times_small(n, x, _product(n, x, *found))


def _gelu(n: Numbers, x: Value) -> Value:
    """``x erfc(-x / sqrt 2) / 2``; what the argument lost is made up for by its derivative."""
    root = math.sqrt(0.5)
    over = x * -root
    half = x * 0.5
    if n.single:
        return half * n.library("erfc", over)
    tail = n.erfc(over)
    left = 4.833646656726457e-17  # of the root, after its 53 bits
    lost = x.fma(-root, -over) - x * -left
    slope = n.exp(-(over * over)) * (-2 / math.sqrt(math.pi))
    found = _product(n, half, tail, slope * lost)
    found = (abs(x) < 0.5).select(half.fma(_error_function_near_zero(x), half), found)
    return (x < -37).select(_gelu_far(n, (x < -40).select(-40, x)), found)


def _error_function_near_zero(x: Value) -> Value:
    """``erf(x / sqrt 2)`` for `x` from -1/2 to 1/2, by its series."""
    over = x * x * -0.5
    series = x.lift(0)
    for order in range(11, -1, -1):
        series = series.fma(over, x.lift(1 / (math.factorial(order) * (2 * order + 1))))
    return x * math.sqrt(2 / math.pi) * series


def _gelu_far(n: Numbers, x: Value) -> Value:
    """The same where the complementary error function comes near the least number: its asymptotic series."""
    half = x * 0.5
    square, lost = two_product(x, half)
    over = 0.5 / square  # 1 / x**2
    series = x.lift(0)
    for odd in range(15, 0, -2):  # 1 - series = 1 - 1/x**2 (1 - 3/x**2 (1 - 5/x**2 ...))
        series = over * odd * (1 - series)
    larger = n.exp(64 - square)
    part = (series + lost) * -larger
    scale, scale_left = -6.398279740081261e-29, -1.276958596889294e-45  # - exp(-64) / sqrt(2 pi)
    return larger.fma(scale, part.fma(scale, larger * scale_left))


GELU_ROOT = Fraction("1.59576912160573071175978423973752747390")
"""2 sqrt(2 / pi)"""


def _gelu_tanh_of_64(n: Numbers, x: Value) -> Value:
    """As :func:`_gelu_tanh`, its exponent as a pair: what that lacks counts as often as it is large."""
    inside = (x > 30).select(30, x)  # beyond, it is `x` or nothing
    inside = (inside < -30).select(-30, inside)
    alone = inside, x.lift(0)
    cube = pair_product(two_product(inside, inside), alone)
    scaled = pair_product(cube, pair(x, Fraction("0.044715")))
    twice, left = pair_product(pair_sum(alone, scaled), pair(x, GELU_ROOT))
    part = _decay(n, twice)
    part_left = part * (twice < 0).select(left, -left)
    below = part + 1
    below_left = part - (below - 1) + part_left
    above = (twice < 0).select(part, 1)
    above_left = (twice < 0).select(part_left, 0)
    found = _product(n, x, *_quotient(n, above, below, above_left, below_left))
    return _times_small(n, inside, found, twice, left)


def _gelu_tanh(n: Numbers, x: Value) -> Value:
    if not n.single:
        return _gelu_tanh_of_64(n, x)
    cube = x * x * (x * 0.044715)
    return x * _sigmoid(n, (x + cube) * (2 * math.sqrt(2 / math.pi)))


def _logit(n: Numbers, x: Value) -> Value:
    rest = 1 - x
    if n.single:
        return n.library("log", x / rest)
    away = abs(x - 0.5)
    lesser = (x < 0.5).select(x, rest)
    near = n.library("log1p", (away + away) / lesser)  # of numbers that are exact there
    near = (x < 0.5).select(-near, near)
    return (away < 0.25).select(near, n.library("log", x / rest))


def _logaddexp(n: Numbers, x: Value, y: Value) -> Value:
    """``log(exp(x) + exp(y))``; of 64 bits to two units in the last place where it is no less than 2**-45."""
    most = (x > y).select(x, y)
    difference = x.equals(y).select(0, x - y)  # infinities, too
    part = _decay(n, difference)
    smooth = n.log1p_of_part(part)
    if n.single:
        return most + smooth
    rest = two_sum(x, -y)[1]
    rest = (difference < 0).select(rest, -rest)
    rest = (abs(x - y) < math.inf).select(rest, 0)
    found = most + (smooth + part * rest / (part + 1))
    # near zero the sum cancels, or its second part is most of it: log(1 + (exp(most) - 1) + exp(least))
    least = (x > y).select(y, x)
    power = pair_sum(pair_expm1(least * (1 / 256)), (x.lift(1), x.lift(0)))
    for _ in range(8):
        power = pair_product(power, power)
    whole, left = pair_sum(pair_expm1(most), power)
    near = n.library("log1p", whole) + left / (whole + 1)
    near = (most < -2).select(found, near)
    near = (most > 1 / 4).select(found, near)
    return (least < SMALL).select(found, near)


OWN: dict[str, Callable[..., Value]] = {
    "sigmoid": _sigmoid,
    "silu": _silu,
    "softplus": _softplus,
    "mish": _mish,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "logit": _logit,
    "logaddexp": _logaddexp,
    "elu": lambda n, x: (x < 0).select(n.library("expm1", x), x),
    "xlogy": lambda n, x, y: x * n.library("log", y),
}
"""Of each operation, how it is computed of vectors."""
