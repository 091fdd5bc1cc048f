"""Functions of a row of numbers, for what no processor rounds: hibana's own code, or a library's.

Each is ``void (int32 count, *source, …, *target, int64 mode)``, which is how Intel's library has it, so that
a kernel calls it by an address, whoever made it. Functions of 32-bit numbers are computed in 64 bits and
rounded once; those of 64 bits stand on the C library's.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from hibana.loop.cpu.body import SIZE, splat
from hibana.loop.cpu.numbers import LANES, VECTOR, Numbers
from hibana.loop.cpu.own import OWN
from hibana.loop.graph.ops import OPERATIONS
from hibana.native import Writer, assemble
from hibana.native.threads import libtorch

__all__ = ["library_function", "own_function", "sleef_function"]


@cache
def own_function(name: str, dtype: torch.dtype) -> int:
    """The address of hibana's own function, or 0 if there is none."""
    double = dtype == torch.float64
    if name not in OWN:
        return 0
    if double and name == "gelu" and not _named_symbol("hibana_erfc", "vmdErfc"):
        return 0
    writer = Writer()
    writer.let("buffer", f"alloca {VECTOR}, align 64")
    numbers = Numbers(writer, single=not double)
    arity = OPERATIONS[name].arity

    def computed(*given: str) -> str:
        wide = given if double else [numbers.do(f"fpext <{LANES} x float> {x} to {VECTOR}") for x in given]
        found = OWN[name](numbers, *wide)
        return found if double else numbers.do(f"fptrunc {VECTOR} {found} to <{LANES} x float>")

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
