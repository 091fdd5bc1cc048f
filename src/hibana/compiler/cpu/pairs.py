"""Double-double arithmetic: a number of 106 bits as the sum of two float64."""

import math
from fractions import Fraction

from hibana.runtime.kernels import Value

__all__ = ["Pair", "pair", "pair_expm1", "pair_product", "pair_sum", "two_product", "two_sum"]

Pair = tuple[Value, Value]
"""A number as a sum of two, of 106 bits."""


def two_sum(x: Value, y: Value) -> Pair:
    """A sum, and what it lost to rounding: Knuth, *The Art of Computer Programming*, volume 2, 4.2.2."""
    found = x + y
    part = found - x
    return found, (x - (found - part)) + (y - part)


def two_product(x: Value, y: Value) -> Pair:
    """A product, and what it lost to rounding."""
    found = x * y
    return found, x.fma(y, -found)


def pair(like: Value, value: Fraction) -> Pair:
    """A number that is known."""
    high = float(value)
    return like.lift(high), like.lift(float(value - Fraction(high)))


def pair_sum(x: Pair, y: Pair) -> Pair:
    """A sum of pairs."""
    high, low = two_sum(x[0], y[0])
    return two_sum(high, low + (x[1] + y[1]))


def pair_product(x: Pair, y: Pair) -> Pair:
    """A product of pairs."""
    high, low = two_product(x[0], y[0])
    return two_sum(high, low + x[0].fma(y[1], x[1] * y[0]))


def pair_expm1(x: Value) -> Pair:
    """The exponential less one, by its series, for `x` from -3 to 3."""
    x_pair = x, x.lift(0.0)
    found = pair(x, Fraction(1, math.factorial(TERMS)))
    for order in range(TERMS - 1, 0, -1):
        found = pair_sum(pair_product(found, x_pair), pair(x, Fraction(1, math.factorial(order))))
    return pair_product(found, x_pair)


TERMS = 42
"""Of the series: 3 to this power over its factorial is less than 2**-100."""
