"""Arithmetic on vectors of float64 in a kernel: LLVM instructions and library calls."""

import math
from collections.abc import Sequence

from hibana.compiler.cpu.schedule import ACCURATE
from hibana.runtime.kernels import DOUBLE, INT, LONG, Code, Doubles, Function, Value, declared

__all__ = ["VECTOR", "Numbers", "lane_by_lane"]

VECTOR = 8


class Numbers:
    """What is computed of vectors of 64-bit numbers besides what their own operators say."""

    def __init__(self, code: Code, *, single: bool) -> None:
        self.code = code
        self.single = single
        """Whether what is computed is rounded to 32 bits in the end."""

    def library(self, name: str, *arguments: Value) -> Value:
        """The C library's function of each number."""
        return lane_by_lane(self.code, declared(name, DOUBLE, *[DOUBLE] * len(arguments)), arguments)

    def erfc(self, x: Value) -> Value:
        """Intel's function of each number: the C library's is not within two units in the last place."""
        function = declared("hibana_erfc", None, INT, Doubles, Doubles, LONG)
        buffer = self.code.array(Doubles, VECTOR)
        buffer.store(x)
        count, mode = self.code.constant(VECTOR, INT), self.code.constant(ACCURATE)
        function.do(self.code, count, buffer, buffer, mode)
        return buffer.load(VECTOR)

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

    def log1p_of_part(self, x: Value) -> Value:
        """The logarithm of 1 + `x`, for `x` from 0 to 1."""
        if not self.single:
            return self.library("log1p", x)
        ratio = x / (x + 2)
        square = ratio * ratio
        result = x.lift(2 / 29)
        for odd in range(27, 0, -2):
            result = result.fma(square, 2 / odd)
        return result * ratio


def _power_of_two(count: Value) -> Value:
    return ((count.whole() + 1023) << 52).number()


def lane_by_lane(code: Code, function: Function, arguments: Sequence[Value]) -> Value:
    """The vector of what `function` gives for each lane of the `arguments`."""
    type_ = arguments[0].type
    result = arguments[0].undefined(type_)
    for lane in range(type_.width):
        result = result.with_lane(lane, function(code, *[x.lane(lane) for x in arguments]))
    return result
