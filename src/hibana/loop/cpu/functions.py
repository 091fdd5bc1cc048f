"""Functions of a row of numbers, for what no processor rounds: hibana's own code, or a library's.

Each is ``void (int32 count, *source, …, *target, int64 mode)``, which is how Intel's library has it, so that
a kernel calls it by an address, whoever made it. Functions of 32-bit numbers are computed in 64 bits and
rounded once; those of 64 bits stand on the C library's.
"""

import ctypes
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import torch

from hibana.loop.cpu.body import SIZE, splat
from hibana.loop.cpu.source import ACCURATE
from hibana.loop.graph.ops import OPERATIONS
from hibana.native import Writer, assemble
from hibana.native.threads import libtorch

__all__ = ["library_function", "own_function", "sleef_function"]

LANES = 8
_VECTOR = f"<{LANES} x double>"
_MASK = f"<{LANES} x i1>"


class _Numbers:
    """Arithmetic of vectors of 64-bit numbers, by LLVM's instructions."""

    def __init__(self, writer: Writer, *, single: bool) -> None:
        self.writer = writer
        self.single = single
        """Whether what is computed is rounded to 32 bits in the end."""
        self.declared: dict[str, int] = {}

    def _do(self, said: str) -> str:
        return self.writer.let("", said)

    def number(self, value: float) -> str:
        return f"splat (double 0x{struct.pack('>d', value).hex().upper()})"

    def add(self, x: str, y: str) -> str:
        return self._do(f"fadd {_VECTOR} {x}, {y}")

    def sub(self, x: str, y: str) -> str:
        return self._do(f"fsub {_VECTOR} {x}, {y}")

    def mul(self, x: str, y: str) -> str:
        return self._do(f"fmul {_VECTOR} {x}, {y}")

    def div(self, x: str, y: str) -> str:
        return self._do(f"fdiv {_VECTOR} {x}, {y}")

    def neg(self, x: str) -> str:
        return self._do(f"fneg {_VECTOR} {x}")

    def fma(self, x: str, y: str, z: str) -> str:
        return self._do(f"call {_VECTOR} @llvm.fma.v8f64({_VECTOR} {x}, {_VECTOR} {y}, {_VECTOR} {z})")

    def one(self, intrinsic: str, x: str) -> str:
        return self._do(f"call {_VECTOR} @llvm.{intrinsic}.v8f64({_VECTOR} {x})")

    def choose(self, order: str, x: str, y: str, then: str, other: str) -> str:
        """`then` where `x` is so ordered to `y`, `other` elsewhere."""
        mask = self._do(f"fcmp {order} {_VECTOR} {x}, {y}")
        return self._do(f"select {_MASK} {mask}, {_VECTOR} {then}, {_VECTOR} {other}")

    def library(self, name: str, *arguments: str) -> str:
        """The C library's function of each number."""
        self.declared[name] = len(arguments)
        result = "poison"
        for lane in range(LANES):
            given = [self._do(f"extractelement {_VECTOR} {x}, i64 {lane}") for x in arguments]
            found = self._do(f"call double @{name}({', '.join(f'double {x}' for x in given)})")
            result = self._do(f"insertelement {_VECTOR} {result}, double {found}, i64 {lane}")
        return result

    def erfc(self, x: str) -> str:
        """Intel's function of each number: the C library's is not within two units in the last place."""
        self.declared["hibana_erfc"] = -1
        self.writer.do(f"store {_VECTOR} {x}, ptr %buffer")
        self.writer.do(f"call void @hibana_erfc(i32 {LANES}, ptr %buffer, ptr %buffer, i64 {ACCURATE})")
        return self._do(f"load {_VECTOR}, ptr %buffer")

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
        whole = self._do(f"call <{LANES} x i64> @llvm.fptosi.sat.v8i64.v8f64({_VECTOR} {count})")
        biased = self._do(f"add <{LANES} x i64> {whole}, splat (i64 1023)")
        shifted = self._do(f"shl <{LANES} x i64> {biased}, splat (i64 52)")
        return self._do(f"bitcast <{LANES} x i64> {shifted} to {_VECTOR}")

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


def _decay(n: _Numbers, x: str) -> str:
    return n.exp(n.neg(n.one("fabs", x)))


def _quotient(
    n: _Numbers, above: str, below: str, above_left: str = "", below_left: str = ""
) -> tuple[str, str]:
    """A quotient, and what is to be added to it for what it and its arguments lost to rounding."""
    found = n.div(above, below)
    if n.single:
        return found, n.number(0)
    left = n.fma(n.neg(found), below, above)
    if above_left:
        left = n.add(left, above_left)
    return found, n.div(n.sub(left, n.mul(found, below_left)), below)


def _logistic(n: _Numbers, x: str) -> tuple[str, str]:
    part = _decay(n, x)
    below = n.add(part, n.number(1))
    lost = n.sub(part, n.sub(below, n.number(1)))
    return _quotient(n, n.choose("olt", x, n.number(0), part, n.number(1)), below, "", lost)


def _product(n: _Numbers, x: str, found: str, left: str) -> str:
    """`x` times the sum of the other two, rounded once."""
    high = n.mul(x, found)
    if n.single:
        return high
    whole = n.add(high, n.fma(x, left, n.fma(x, found, n.neg(high))))
    size = n.one("fabs", high)  # of infinities there is no rest
    return n.choose("olt", size, n.number(math.inf), whole, high)


def _sigmoid(n: _Numbers, x: str) -> str:
    return n.add(*_logistic(n, x))


SMALL = -700.0
"""From which on downwards an exponential comes near the least number, which has few digits."""


def _times_small(n: _Numbers, x: str, found: str, of: str = "", left: str = "") -> str:
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


def _silu(n: _Numbers, x: str) -> str:
    return _times_small(n, x, _product(n, x, *_logistic(n, x)))


def _softplus(n: _Numbers, x: str) -> str:
    return n.add(n.choose("ogt", x, n.number(0), x, n.number(0)), n.log1p_of_part(_decay(n, x)))


def _mish(n: _Numbers, x: str) -> str:
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


def _gelu(n: _Numbers, x: str) -> str:
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


def _gelu_far(n: _Numbers, x: str) -> str:
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


def _two_sum(n: _Numbers, x: str, y: str) -> tuple[str, str]:
    """A sum, and what it lost to rounding: Knuth, *The Art of Computer Programming*, volume 2, 4.2.2."""
    found = n.add(x, y)
    part = n.sub(found, x)
    return found, n.add(n.sub(x, n.sub(found, part)), n.sub(y, part))


def _two_product(n: _Numbers, x: str, y: str) -> tuple[str, str]:
    """A product, and what it lost to rounding."""
    found = n.mul(x, y)
    return found, n.fma(x, y, n.neg(found))


Pair = tuple[str, str]
"""A number as a sum of two, of 106 bits."""


def _pair(n: _Numbers, value: Fraction) -> Pair:
    high = float(value)
    return n.number(high), n.number(float(value - Fraction(high)))


def _pair_sum(n: _Numbers, x: Pair, y: Pair) -> Pair:
    high, low = _two_sum(n, x[0], y[0])
    return _two_sum(n, high, n.add(low, n.add(x[1], y[1])))


def _pair_product(n: _Numbers, x: Pair, y: Pair) -> Pair:
    high, low = _two_product(n, x[0], y[0])
    return _two_sum(n, high, n.add(low, n.fma(x[0], y[1], n.mul(x[1], y[0]))))


def _pair_expm1(n: _Numbers, x: str) -> Pair:
    """The exponential less one, by its series, for `x` from -3 to 3."""
    found = _pair(n, Fraction(1, math.factorial(TERMS)))
    for order in range(TERMS - 1, 0, -1):
        term = _pair(n, Fraction(1, math.factorial(order)))
        found = _pair_sum(n, _pair_product(n, found, (x, n.number(0))), term)
    return _pair_product(n, found, (x, n.number(0)))


TERMS = 42
"""Of the series: 3 to this power over its factorial is less than 2**-100."""

GELU_ROOT = Fraction("1.59576912160573071175978423973752747390")
"""2 sqrt(2 / pi)"""


def _gelu_tanh_of_64(n: _Numbers, x: str) -> str:
    """As :func:`_gelu_tanh`, its exponent as a pair: what that lacks counts as often as it is large."""
    inside = n.choose("ogt", x, n.number(30), n.number(30), x)  # beyond, it is `x` or nothing
    inside = n.choose("olt", inside, n.number(-30), n.number(-30), inside)
    zero, one = n.number(0), n.number(1)
    cube = _pair_product(n, _two_product(n, inside, inside), (inside, zero))
    scaled = _pair_product(n, cube, _pair(n, Fraction("0.044715")))
    twice, left = _pair_product(n, _pair_sum(n, (inside, zero), scaled), _pair(n, GELU_ROOT))
    part = _decay(n, twice)
    minus = n.choose("olt", twice, zero, left, n.neg(left))
    part_left = n.mul(part, minus)
    below = n.add(part, one)
    below_left = n.add(n.sub(part, n.sub(below, one)), part_left)
    above = n.choose("olt", twice, zero, part, one)
    above_left = n.choose("olt", twice, zero, part_left, zero)
    found = _product(n, x, *_quotient(n, above, below, above_left, below_left))
    return _times_small(n, inside, found, twice, left)


def _gelu_tanh(n: _Numbers, x: str) -> str:
    if not n.single:
        return _gelu_tanh_of_64(n, x)
    cube = n.mul(n.mul(x, x), n.mul(x, n.number(0.044715)))
    twice = n.mul(n.add(x, cube), n.number(2 * math.sqrt(2 / math.pi)))
    return n.mul(x, _sigmoid(n, twice))


def _logit(n: _Numbers, x: str) -> str:
    rest = n.sub(n.number(1), x)
    if n.single:
        return n.library("log", n.div(x, rest))
    away = n.one("fabs", n.sub(x, n.number(0.5)))
    lesser = n.choose("olt", x, n.number(0.5), x, rest)
    near = n.library("log1p", n.div(n.add(away, away), lesser))  # of numbers that are exact there
    near = n.choose("olt", x, n.number(0.5), n.neg(near), near)
    return n.choose("olt", away, n.number(0.25), near, n.library("log", n.div(x, rest)))


def _logaddexp(n: _Numbers, x: str, y: str) -> str:
    """``log(exp(x) + exp(y))``; of 64 bits to two units in the last place where it is no less than 2**-45."""
    most = n.choose("ogt", x, y, x, y)
    apart = n.choose("oeq", x, y, n.number(0), n.sub(x, y))  # infinities, too
    part = _decay(n, apart)
    smooth = n.log1p_of_part(part)
    if n.single:
        return n.add(most, smooth)
    rest = _two_sum(n, x, n.neg(y))[1]
    rest = n.choose("olt", apart, n.number(0), rest, n.neg(rest))
    rest = n.choose("olt", n.one("fabs", n.sub(x, y)), n.number(math.inf), rest, n.number(0))
    found = n.add(most, n.add(smooth, n.div(n.mul(part, rest), n.add(part, n.number(1)))))
    # where both are not far below zero, the sum nearly cancels: log(1 + (exp(most) - 1) + exp(least))
    least = n.choose("ogt", x, y, y, x)
    power = _pair_expm1(n, n.mul(least, n.number(1 / 256)))
    power = _pair_sum(n, power, (n.number(1), n.number(0)))
    for _ in range(8):
        power = _pair_product(n, power, power)
    whole, left = _pair_sum(n, _pair_expm1(n, most), power)
    near = n.add(n.library("log1p", whole), n.div(left, n.add(whole, n.number(1))))
    near = n.choose("olt", most, n.number(-2), found, near)
    near = n.choose("ogt", most, n.number(0), found, near)
    return n.choose("olt", least, n.number(SMALL), found, near)


_OWN: dict[str, Callable[..., str]] = {
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


@cache
def own_function(name: str, dtype: torch.dtype) -> int:
    """The address of hibana's own function, or 0 if there is none."""
    double = dtype == torch.float64
    if name not in _OWN:
        return 0
    if double and name == "gelu" and not _named_symbol("hibana_erfc", "vmdErfc"):
        return 0
    writer = Writer()
    writer.let("buffer", f"alloca {_VECTOR}, align 64")
    numbers = _Numbers(writer, single=not double)
    arity = OPERATIONS[name].arity

    def computed(*given: str) -> str:
        wide = given if double else [numbers._do(f"fpext <{LANES} x float> {x} to {_VECTOR}") for x in given]
        found = _OWN[name](numbers, *wide)
        return found if double else numbers._do(f"fptrunc {_VECTOR} {found} to <{LANES} x float>")

    return _row(
        name, "double" if double else "float", arity, LANES, writer, computed, numbers.declared, own=True
    )


@cache
def library_function(name: str, dtype: torch.dtype) -> int:
    """The address of a function that applies the C library's, or 0 if it has none; 64 bits serve 32."""
    libm = OPERATIONS[name].libm
    if not libm:
        return 0
    double = dtype == torch.float64
    real = "double" if double else "float"
    writer = Writer()
    function = libm if double else f"{libm}f"

    def computed(*given: str) -> str:
        result = "poison"
        for lane in range(LANES):
            ones = [writer.let("", f"extractelement <{LANES} x {real}> {x}, i64 {lane}") for x in given]
            found = writer.let("", f"call {real} @{function}({', '.join(f'{real} {x}' for x in ones)})")
            result = writer.let("", f"insertelement <{LANES} x {real}> {result}, {real} {found}, i64 {lane}")
        return result

    return _row(
        name, real, OPERATIONS[name].arity, LANES, writer, computed, {function: OPERATIONS[name].arity}
    )


def _named_symbol(name: str, symbol: str) -> bool:
    """Has what is compiled find libtorch's function `symbol` by `name`; False if there is none."""
    import llvmlite.binding as llvm

    if not hasattr(libtorch(), symbol):
        return False
    llvm.add_symbol(name, ctypes.cast(getattr(libtorch(), symbol), ctypes.c_void_p).value)
    return True


_WIDTHS = {"AVX512": 64, "AVX2": 32}
"""Bytes of the vectors that PyTorch computes in."""


@cache
def sleef_function(name: str, dtype: torch.dtype) -> int:
    """The address of a function that applies Sleef's, as PyTorch's own vectors do; 0 if it isn't there."""
    width = _WIDTHS.get(torch.backends.cpu.get_cpu_capability(), 0)
    real = "double" if dtype == torch.float64 else "float"
    lanes = width // SIZE[real]
    accuracy = "u05" if name == "hypot" else "u10"
    symbol = f"Sleef_{OPERATIONS[name].sleef}{real[0]}{lanes}_{accuracy}"
    if not (lanes and OPERATIONS[name].sleef and _named_symbol(symbol, symbol)):
        return 0
    writer = Writer()
    vector = f"<{lanes} x {real}>"

    def computed(*given: str) -> str:
        return writer.let("", f"call {vector} @{symbol}({', '.join(f'{vector} {x}' for x in given)})")

    return _row(name, real, OPERATIONS[name].arity, lanes, writer, computed, {symbol: 0})


_ROWS: list[object] = []
"""Kernels whose addresses were given away: they stay."""


def _row(
    name: str,
    real: str,
    arity: int,
    lanes: int,
    writer: Writer,
    computed: Callable[..., str],
    declared: dict[str, int],
    *,
    own: bool = False,
) -> int:
    """The address of a function of rows that computes `lanes` numbers at a time by `computed`."""
    vector, mask = f"<{lanes} x {real}>", f"<{lanes} x i1>"
    kind = f"v{lanes}f{8 * SIZE[real]}"
    sources = ["source", "second"][:arity]
    writer.let("n", "sext i32 %count to i64")
    with writer.loop("j", "0", "%n", lanes) as j:
        left = writer.let("", f"sub i64 %n, {j}")
        places = ", ".join(f"i64 {i}" for i in range(lanes))
        there = writer.let("", f"icmp slt <{lanes} x i64> <{places}>, {splat(writer, 'i64', left, lanes)}")
        ones = f"{vector} splat ({real} 0.5)"  # where there is nothing; of no matter
        given = [
            writer.let(
                "",
                f"call {vector} @llvm.masked.load.{kind}.p0(ptr {writer.row('', real, f'%{source}', j)}, "
                f"i32 {SIZE[real]}, {mask} {there}, {ones})",
            )
            for source in sources
        ]
        found = computed(*given)
        writer.do(
            f"call void @llvm.masked.store.{kind}.p0({vector} {found}, "
            f"ptr {writer.row('', real, '%target', j)}, i32 {SIZE[real]}, {mask} {there})"
        )
    writer.do("ret void")
    heads = []
    for function, count in declared.items():
        if count < 0:
            heads.append(f"declare void @{function}(i32, ptr, ptr, i64)")
        else:
            kind = ("double" if own else real) if count else vector
            heads.append(f"declare {kind} @{function}({', '.join([kind] * (count or arity))})")
    arguments = ", ".join(f"ptr %{row}" for row in (*sources, "target"))
    head = f"define void @{name}_row(i32 %count, {arguments}, i64 %mode) {{"
    (kernel,) = assemble("\n".join([*heads, "", head, *writer.lines, "}", ""]), (f"{name}_row",))
    _ROWS.append(kernel)
    return kernel.address
