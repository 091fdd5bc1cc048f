"""Random bits, uniform and normal numbers as functions of a key and a counter, the same on every backend.

The bits are those of Threefry-2x32 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1,
2, 3"). Normal numbers are pairs by the method of Box and Muller (1958, "A note on the generation of random
normal deviates"). Each function is generic over the numbers of the backends, and uses only operations that
IEEE 754 determines. :mod:`hibana.compiler.draws` defines the numbers of a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROUNDS = 13
"""The fewest rounds of Threefry-2x32 without a failure in BigCrush, according to the paper."""
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
"""The paper's constant for the third word of the key, for 32-bit words."""

SHARED = 16
"""The distance of the two elements that share a counter, in groups of twice as many elements."""

LARGEST_NORMAL = 6.6
"""An upper bound of the magnitude of normal numbers: the root of -2 log 2**-31."""


class Numbers(NamedTuple):
    """A backend's operations on 32-bit words and float32 numbers, or vectors of them.

    The functions below also use the operators of Python.
    """

    add: Callable[[Any, Any], Any]
    """The sum of two words modulo 2**32."""
    rotate_left: Callable[[Any, int], Any]
    """A word, rotated left by a number of bits."""
    real: Callable[[Any], Any]
    """A signed word as a float32 number, rounded."""
    double: Callable[[Any], Any]
    """A word as a float64 number."""
    bits: Callable[[Any], Any]
    """The bits of a float32 number as a word."""
    number: Callable[[Any], Any]
    """The float32 number with the bits of a word."""
    root: Callable[[Any], Any]
    """The square root of a float32 number, rounded once."""
    where: Callable[[Any, Any, Any], Any]
    """The second argument where the first, a condition, is true; else the third."""


def key_schedule(n: Numbers, low: Any, high: Any) -> list[tuple[Any, Any]]:
    """Threefry's round keys for the key (`low`, `high`): pairs of words, one for each word of the counter.

    The first pair is added before round 0, each further pair after four more rounds.
    """
    key = (low, high, low ^ high ^ PARITY)
    return [(key[i % 3], n.add(key[(i + 1) % 3], i)) for i in range(ROUNDS // 4 + 1)]


def threefry(n: Numbers, schedule: Sequence[tuple[Any, Any]], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """The two words of random bits of `counter`, under the key with the round keys `schedule`."""
    (key_x, key_y), *later_keys = schedule
    x, y = n.add(counter[0], key_x), n.add(counter[1], key_y)
    for i in range(ROUNDS):
        x = n.add(x, y)
        y = n.rotate_left(y, ROTATIONS[i % len(ROTATIONS)]) ^ x
        if i % 4 == 3:
            key_x, key_y = later_keys[i // 4]
            x, y = n.add(x, key_x), n.add(y, key_y)
    return x, y


def numbers(
    n: Numbers,
    distribution: str,
    schedule: Sequence[tuple[Any, Any]],
    element: Any,
    step: Any,
    in_float64: bool,
) -> Any:
    """The random numbers of the elements of a tensor with the indices `element`, at the step of time `step`.

    The `distribution` is ``"uniform"`` or ``"normal"``. Elements i and i + 16 of each 32 share a counter: i
    gets its first word and i + 16 its second, or each gets one of a pair of normal numbers. A uniform number
    in float64 takes both words of its own counter. Other numbers are float32.
    """
    if distribution == "uniform" and in_float64:
        x, y = threefry(n, schedule, (element, step))
        return n.double(x) * 2.0**-32 + n.double(y >> 11) * 2.0**-53
    counter = ((element >> 5) << 4) | (element & (SHARED - 1))
    is_second = (element & SHARED) > 0
    x, y = threefry(n, schedule, (counter, step))
    if distribution == "normal":
        first, second = normal(n, x, y)
        return n.where(is_second, second, first)
    return uniform(n, n.where(is_second, y, x))


def uniform(n: Numbers, word: Any) -> Any:
    """A float32 number in [0, 1): the word's upper 24 bits, in units of 2**-24."""
    return n.real(word >> 8) * 2.0**-24


_ROOT_OF_HALF = 0x3F3504F3
"""The bits of sqrt(1/2) as a float32 number."""


def normal(n: Numbers, x: Any, y: Any) -> tuple[Any, Any]:
    """A pair of independent normal numbers from two random words, computed in float32.

    ``sqrt(-2 log r) (cos a, sin a)``. r has 30 bits of `x`. 23 bits of `y` are an angle from -pi/4 to pi/4;
    one bit of `y` exchanges cosine and sine, and another is the sign of both.
    """
    # r = m / 2**31 with m = 2**e mantissa, and the mantissa from sqrt(1/2) to sqrt(2)
    # Adding the distance of the bits of 1 and sqrt(1/2) makes the exponent field change at sqrt(1/2).
    shifted = n.bits(n.real((x >> 1) | 1)) + (0x3F800000 - _ROOT_OF_HALF)
    mantissa = n.number((shifted & 0x7FFFFF) + _ROOT_OF_HALF)
    ratio = (mantissa - 1) / (mantissa + 1)  # log(mantissa) = 2 artanh(ratio)
    square = ratio * ratio
    log = ratio * (2 + square * (2 / 3 + square * (2 / 5 + square * (2 / 7 + square * (2 / 9)))))
    # 31 - e, since 127 is the bias of float32 exponents
    exponent = n.real(127 + 31 - (shifted >> 23))
    radius = n.root(exponent * (2 * math.log(2)) - log * 2)
    angle = n.real((((y >> 6) & 0xFFFFFF) | 1) - 0x800000) * (math.pi / 2 * 2.0**-24)
    z = angle * angle
    sine = angle * (1 + z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880)))))
    cosine = 1 + z * (-1 / 2 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320))))
    signed_radius = n.number(n.bits(radius) ^ (y & 0x80000000))
    is_exchanged = (y & 0x40000000) > 0
    first = signed_radius * n.where(is_exchanged, sine, cosine)
    return first, signed_radius * n.where(is_exchanged, cosine, sine)
