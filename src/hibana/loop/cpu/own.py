"""Functions that no processor rounds, in hibana's own code."""

import math
from collections.abc import Callable
from fractions import Fraction

from hibana.loop.cpu.numbers import Numbers
from hibana.loop.cpu.pairs import pair, pair_expm1, pair_product, pair_sum, two_product, two_sum

__all__ = ["OWN"]


def _decay(n: Numbers, x: str) -> str:
    return n.exp(n.neg(n.one("fabs", x)))


def _quotient(
    n: Numbers, above: str, below: str, above_left: str = "", below_left: str = ""
) -> tuple[str, str]:
    """A quotient, and what is to be added to it for what it and its arguments lost to rounding."""
    found = n.div(above, below)
    if n.single:
        return found, n.number(0)
    left = n.fma(n.neg(found), below, above)
    if above_left:
        left = n.add(left, above_left)
    return found, n.div(n.sub(left, n.mul(found, below_left)), below)


def _logistic(n: Numbers, x: str) -> tuple[str, str]:
    part = _decay(n, x)
    below = n.add(part, n.number(1))
    lost = n.sub(part, n.sub(below, n.number(1)))
    return _quotient(n, n.choose("olt", x, n.number(0), part, n.number(1)), below, "", lost)


def _product(n: Numbers, x: str, found: str, left: str) -> str:
    """`x` times the sum of the other two, rounded once."""
    high = n.mul(x, found)
    if n.single:
        return high
    whole = n.add(high, n.fma(x, left, n.fma(x, found, n.neg(high))))
    size = n.one("fabs", high)  # of infinities there is no rest
    return n.choose("olt", size, n.number(math.inf), whole, high)


def _sigmoid(n: Numbers, x: str) -> str:
    return n.add(*_logistic(n, x))


SMALL = -700.0
"""From which on downwards an exponential comes near the least number, which has few digits."""


def _times_small(n: Numbers, x: str, found: str, of: str = "", left: str = "") -> str:
    """`found`, but `x` times the exponential of itself, or of the sum `of` + `left`, where that is small."""
    if n.single:
        return found
    exponent = of or x
    near = n.choose("olt", exponent, n.number(-800), n.number(-800), exponent)
    larger = n.exp(n.add(near, n.number(64)))
    factor = x if of else near
    high = n.mul(factor, larger)
    low = n.fma(factor, larger, n.neg(high))
    if left:
        low = n.fma(high, left, low)
    scale, scale_left = n.number(math.exp(-64)), n.number(-7.361325221284214e-45)
    small = n.fma(high, scale, n.fma(high, scale_left, n.mul(low, scale)))
    small = n.add(small, n.mul(found, n.number(0)))  # of minus infinity, NaN as PyTorch's
    return n.choose("olt", exponent, n.number(SMALL), small, found)


def _silu(n: Numbers, x: str) -> str:
    return _times_small(n, x, _product(n, x, *_logistic(n, x)))


def _softplus(n: Numbers, x: str) -> str:
    return n.add(n.choose("ogt", x, n.number(0), x, n.number(0)), n.log1p_of_part(_decay(n, x)))


def _mish(n: Numbers, x: str) -> str:
    """``x tanh(log(1 + exp(x)))``, a quotient of polynomials in the exponential of minus its size."""
    part, zero, one, two = _decay(n, x), n.number(0), n.number(1), n.number(2)
    twice = n.add(part, part)
    above = n.fma(part, part, twice)
    above_left = n.fma(part, part, n.sub(twice, above))
    below = n.add(above, two)
    below_left = n.add(above_left, n.sub(above, n.sub(below, two)))
    more = n.add(twice, one)
    more_left = n.sub(twice, n.sub(more, one))
    most = n.fma(twice, part, more)
    most_left = n.add(more_left, n.fma(twice, part, n.sub(more, most)))
    sides = ((above, more), (below, most), (above_left, more_left), (below_left, most_left))
    found = _quotient(n, *(n.choose("olt", x, zero, negative, other) for negative, other in sides))
    return _times_small(n, x, _product(n, x, *found))


def _gelu(n: Numbers, x: str) -> str:
    """``x erfc(-x / sqrt 2) / 2``; what the argument lost is made up for by its derivative."""
    root = math.sqrt(0.5)
    over = n.mul(x, n.number(-root))
    half = n.mul(x, n.number(0.5))
    if n.single:
        return n.mul(half, n.library("erfc", over))
    tail = n.erfc(over)
    left = 4.833646656726457e-17  # of the root, after its 53 bits
    lost = n.sub(n.fma(x, n.number(-root), n.neg(over)), n.mul(x, n.number(-left)))
    slope = n.mul(n.exp(n.neg(n.mul(over, over))), n.number(-2 / math.sqrt(math.pi)))
    found = _product(n, half, tail, n.mul(slope, lost))
    return n.choose(
        "olt", x, n.number(-37), _gelu_far(n, n.choose("olt", x, n.number(-40), n.number(-40), x)), found
    )


def _gelu_far(n: Numbers, x: str) -> str:
    """The same where the complementary error function comes near the least number: its asymptotic series."""
    half = n.mul(x, n.number(0.5))
    square = n.mul(x, half)
    lost = n.fma(x, half, n.neg(square))
    over = n.div(n.number(0.5), square)  # 1 / x**2
    series = n.number(0.0)
    for odd in range(15, 0, -2):  # 1 - series = 1 - 1/x**2 (1 - 3/x**2 (1 - 5/x**2 ...))
        series = n.mul(n.mul(over, n.number(odd)), n.sub(n.number(1), series))
    larger = n.exp(n.sub(n.number(64), square))
    part = n.fma(n.neg(larger), n.add(series, lost), larger)
    scale, scale_left = (
        n.number(-6.398279740081261e-29),
        n.number(-1.276958596889294e-45),
    )  # - exp(-64) / sqrt(2 pi)
    return n.fma(part, scale, n.mul(part, scale_left))


GELU_ROOT = Fraction("1.59576912160573071175978423973752747390")
"""2 sqrt(2 / pi)"""


def _gelu_tanh_of_64(n: Numbers, x: str) -> str:
    """As :func:`_gelu_tanh`, its exponent as a pair: what that lacks counts as often as it is large."""
    inside = n.choose("ogt", x, n.number(30), n.number(30), x)  # beyond, it is `x` or nothing
    inside = n.choose("olt", inside, n.number(-30), n.number(-30), inside)
    zero, one = n.number(0), n.number(1)
    cube = pair_product(n, two_product(n, inside, inside), (inside, zero))
    scaled = pair_product(n, cube, pair(n, Fraction("0.044715")))
    twice, left = pair_product(n, pair_sum(n, (inside, zero), scaled), pair(n, GELU_ROOT))
    part = _decay(n, twice)
    minus = n.choose("olt", twice, zero, left, n.neg(left))
    part_left = n.mul(part, minus)
    below = n.add(part, one)
    below_left = n.add(n.sub(part, n.sub(below, one)), part_left)
    above = n.choose("olt", twice, zero, part, one)
    above_left = n.choose("olt", twice, zero, part_left, zero)
    found = _product(n, x, *_quotient(n, above, below, above_left, below_left))
    return _times_small(n, inside, found, twice, left)


def _gelu_tanh(n: Numbers, x: str) -> str:
    if not n.single:
        return _gelu_tanh_of_64(n, x)
    cube = n.mul(n.mul(x, x), n.mul(x, n.number(0.044715)))
    twice = n.mul(n.add(x, cube), n.number(2 * math.sqrt(2 / math.pi)))
    return n.mul(x, _sigmoid(n, twice))


def _logit(n: Numbers, x: str) -> str:
    rest = n.sub(n.number(1), x)
    if n.single:
        return n.library("log", n.div(x, rest))
    away = n.one("fabs", n.sub(x, n.number(0.5)))
    lesser = n.choose("olt", x, n.number(0.5), x, rest)
    near = n.library("log1p", n.div(n.add(away, away), lesser))  # of numbers that are exact there
    near = n.choose("olt", x, n.number(0.5), n.neg(near), near)
    return n.choose("olt", away, n.number(0.25), near, n.library("log", n.div(x, rest)))


def _logaddexp(n: Numbers, x: str, y: str) -> str:
    """``log(exp(x) + exp(y))``; of 64 bits to two units in the last place where it is no less than 2**-45."""
    most = n.choose("ogt", x, y, x, y)
    apart = n.choose("oeq", x, y, n.number(0), n.sub(x, y))  # infinities, too
    part = _decay(n, apart)
    smooth = n.log1p_of_part(part)
    if n.single:
        return n.add(most, smooth)
    rest = two_sum(n, x, n.neg(y))[1]
    rest = n.choose("olt", apart, n.number(0), rest, n.neg(rest))
    rest = n.choose("olt", n.one("fabs", n.sub(x, y)), n.number(math.inf), rest, n.number(0))
    found = n.add(most, n.add(smooth, n.div(n.mul(part, rest), n.add(part, n.number(1)))))
    # where both are not far below zero, the sum nearly cancels: log(1 + (exp(most) - 1) + exp(least))
    least = n.choose("ogt", x, y, y, x)
    power = pair_expm1(n, n.mul(least, n.number(1 / 256)))
    power = pair_sum(n, power, (n.number(1), n.number(0)))
    for _ in range(8):
        power = pair_product(n, power, power)
    whole, left = pair_sum(n, pair_expm1(n, most), power)
    near = n.add(n.library("log1p", whole), n.div(left, n.add(whole, n.number(1))))
    near = n.choose("olt", most, n.number(-2), found, near)
    near = n.choose("ogt", most, n.number(0), found, near)
    return n.choose("olt", least, n.number(SMALL), found, near)


OWN: dict[str, Callable[..., str]] = {
    "sigmoid": _sigmoid,
    "silu": _silu,
    "softplus": _softplus,
    "mish": _mish,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "logit": _logit,
    "logaddexp": _logaddexp,
    "elu": lambda n, x: n.choose("olt", x, n.number(0), n.library("expm1", x), x),
    "xlogy": lambda n, x, y: n.mul(x, n.library("log", y)),
}
"""Of each operation, how it is computed of vectors."""
