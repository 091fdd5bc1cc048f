"""Numbers of 106 bits, as sums of two of 64: what sums and products lose to rounding is kept."""

import math
from fractions import Fraction

from hibana.loop.cpu.numbers import Numbers

__all__ = ["Pair", "pair", "pair_expm1", "pair_product", "pair_sum", "two_product", "two_sum"]


def two_sum(n: Numbers, x: str, y: str) -> tuple[str, str]:
    """A sum, and what it lost to rounding: Knuth, *The Art of Computer Programming*, volume 2, 4.2.2."""
    found = n.add(x, y)
    part = n.sub(found, x)
    return found, n.add(n.sub(x, n.sub(found, part)), n.sub(y, part))


def two_product(n: Numbers, x: str, y: str) -> tuple[str, str]:
    """A product, and what it lost to rounding."""
    found = n.mul(x, y)
    return found, n.fma(x, y, n.neg(found))


Pair = tuple[str, str]
"""A number as a sum of two, of 106 bits."""


def pair(n: Numbers, value: Fraction) -> Pair:
    """A number that is known."""
    high = float(value)
    return n.number(high), n.number(float(value - Fraction(high)))


def pair_sum(n: Numbers, x: Pair, y: Pair) -> Pair:
    """A sum of pairs."""
    high, low = two_sum(n, x[0], y[0])
    return two_sum(n, high, n.add(low, n.add(x[1], y[1])))


def pair_product(n: Numbers, x: Pair, y: Pair) -> Pair:
    """A product of pairs."""
    high, low = two_product(n, x[0], y[0])
    return two_sum(n, high, n.add(low, n.fma(x[0], y[1], n.mul(x[1], y[0]))))


def pair_expm1(n: Numbers, x: str) -> Pair:
    """The exponential less one, by its series, for `x` from -3 to 3."""
    found = pair(n, Fraction(1, math.factorial(TERMS)))
    for order in range(TERMS - 1, 0, -1):
        term = pair(n, Fraction(1, math.factorial(order)))
        found = pair_sum(n, pair_product(n, found, (x, n.number(0))), term)
    return pair_product(n, found, (x, n.number(0)))


TERMS = 42
"""Of the series: 3 to this power over its factorial is less than 2**-100."""
