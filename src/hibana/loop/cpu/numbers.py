"""Arithmetic of vectors of 64-bit numbers, by LLVM's instructions and the libraries at hand."""

import math
import struct

from hibana.loop.cpu.row_walk import ACCURATE
from hibana.native import Writer

__all__ = ["LANES", "VECTOR", "Numbers"]

LANES = 8
VECTOR = f"<{LANES} x double>"
MASK = f"<{LANES} x i1>"


class Numbers:
    """Arithmetic of vectors of 64-bit numbers, by LLVM's instructions."""

    def __init__(self, writer: Writer, *, single: bool) -> None:
        self.writer = writer
        self.single = single
        """Whether what is computed is rounded to 32 bits in the end."""
        self.declared: dict[str, int] = {}

    def do(self, said: str) -> str:
        return self.writer.let("", said)

    def number(self, value: float) -> str:
        return f"splat (double 0x{struct.pack('>d', value).hex().upper()})"

    def add(self, x: str, y: str) -> str:
        return self.do(f"fadd {VECTOR} {x}, {y}")

    def sub(self, x: str, y: str) -> str:
        return self.do(f"fsub {VECTOR} {x}, {y}")

    def mul(self, x: str, y: str) -> str:
        return self.do(f"fmul {VECTOR} {x}, {y}")

    def div(self, x: str, y: str) -> str:
        return self.do(f"fdiv {VECTOR} {x}, {y}")

    def neg(self, x: str) -> str:
        return self.do(f"fneg {VECTOR} {x}")

    def fma(self, x: str, y: str, z: str) -> str:
        return self.do(f"call {VECTOR} @llvm.fma.v8f64({VECTOR} {x}, {VECTOR} {y}, {VECTOR} {z})")

    def one(self, intrinsic: str, x: str) -> str:
        return self.do(f"call {VECTOR} @llvm.{intrinsic}.v8f64({VECTOR} {x})")

    def choose(self, order: str, x: str, y: str, then: str, other: str) -> str:
        """`then` where `x` is so ordered to `y`, `other` elsewhere."""
        mask = self.do(f"fcmp {order} {VECTOR} {x}, {y}")
        return self.do(f"select {MASK} {mask}, {VECTOR} {then}, {VECTOR} {other}")

    def library(self, name: str, *arguments: str) -> str:
        """The C library's function of each number."""
        self.declared[name] = len(arguments)
        result = "poison"
        for lane in range(LANES):
            given = [self.do(f"extractelement {VECTOR} {x}, i64 {lane}") for x in arguments]
            found = self.do(f"call double @{name}({', '.join(f'double {x}' for x in given)})")
            result = self.do(f"insertelement {VECTOR} {result}, double {found}, i64 {lane}")
        return result

    def erfc(self, x: str) -> str:
        """Intel's function of each number: the C library's is not within two units in the last place."""
        self.declared["hibana_erfc"] = -1
        self.writer.do(f"store {VECTOR} {x}, ptr %buffer")
        self.writer.do(f"call void @hibana_erfc(i32 {LANES}, ptr %buffer, ptr %buffer, i64 {ACCURATE})")
        return self.do(f"load {VECTOR}, ptr %buffer")

    def exp(self, x: str) -> str:
        if not self.single:
            return self.library("exp", x)
        x = self.choose("ogt", x, self.number(800), self.number(800), x)
        x = self.choose("olt", x, self.number(-800), self.number(-800), x)
        count = self.one("rint", self.mul(x, self.number(1 / math.log(2))))
        rest = self.fma(count, self.number(-math.log(2)), x)
        result = self.number(1 / math.factorial(12))
        for power in range(11, -1, -1):
            result = self.fma(result, rest, self.number(1 / math.factorial(power)))
        half = self.one("floor", self.mul(count, self.number(0.5)))
        return self.mul(self.mul(result, self._power_of_two(half)), self._power_of_two(self.sub(count, half)))

    def _power_of_two(self, count: str) -> str:
        whole = self.do(f"call <{LANES} x i64> @llvm.fptosi.sat.v8i64.v8f64({VECTOR} {count})")
        biased = self.do(f"add <{LANES} x i64> {whole}, splat (i64 1023)")
        shifted = self.do(f"shl <{LANES} x i64> {biased}, splat (i64 52)")
        return self.do(f"bitcast <{LANES} x i64> {shifted} to {VECTOR}")

    def log1p_of_part(self, x: str) -> str:
        """The logarithm of 1 + `x`, for `x` from 0 to 1."""
        if not self.single:
            return self.library("log1p", x)
        ratio = self.div(x, self.add(x, self.number(2)))
        square = self.mul(ratio, ratio)
        result = self.number(2 / 29)
        for odd in range(27, 0, -2):
            result = self.fma(result, square, self.number(2 / odd))
        return self.mul(result, ratio)
