"""Transcendental functions of a row of numbers, of a library or of hibana's own, as addresses.

Each is ``void (int32 count, *source, …, *target, int64 mode)``, the signature of Intel's library, so that a
kernel calls all of them alike.
"""

import ctypes
from collections.abc import Callable

import torch

from hibana.compiler.cpu.kernel_writer import libm_function
from hibana.compiler.cpu.vector_math import OWN, VECTOR, Numbers, lane_by_lane
from hibana.compiler.graph.ops import OPERATIONS
from hibana.runtime.kernels import (
    DOUBLE,
    INT,
    LONG,
    Code,
    Doubles,
    Floats,
    Kernel,
    Kind,
    Pointer,
    Value,
    assemble,
    external_function,
    function,
    source,
)
from hibana.runtime.threads import libtorch


def own_function(name: str, dtype: torch.dtype) -> int:
    """The address of hibana's own function, or 0 if there is none."""
    single = dtype != torch.float64
    if name not in OWN:
        return 0

    def computed(code: Code, *given: Value) -> Value:
        numbers = Numbers(code, single=single)
        return OWN[name](numbers, *[x.to(DOUBLE) for x in given]).to(given[0].type)

    return _row(name, dtype, VECTOR, computed)


def library_function(name: str, dtype: torch.dtype) -> int:
    """The address of a function that applies the C library's, or 0 if it has none; 64 bits serve 32."""
    libm = OPERATIONS[name].libm
    if not libm:
        return 0
    function = libm_function(name, _numbers(dtype).element)
    return _row(name, dtype, VECTOR, lambda code, *given: lane_by_lane(code, function, given))


def _numbers(dtype: torch.dtype) -> type[Pointer]:
    return Doubles if dtype == torch.float64 else Floats


def _is_linked(symbol: str) -> bool:
    """Makes libtorch's function `symbol` known to LLVM's linker; False if there is none."""
    import llvmlite.binding as llvm

    if not hasattr(libtorch(), symbol):
        return False
    llvm.add_symbol(symbol, ctypes.cast(getattr(libtorch(), symbol), ctypes.c_void_p).value)
    return True


_WIDTHS = {"AVX512": 64, "AVX2": 32}
"""Bytes of PyTorch's vectors."""


def sleef_function(name: str, dtype: torch.dtype) -> int:
    """The address of a function that applies Sleef's, as PyTorch does; 0 if libtorch has none."""
    kind = _numbers(dtype).element
    width = _WIDTHS.get(torch.backends.cpu.get_cpu_capability(), 0) // kind.size
    accuracy = "u05" if name == "hypot" else "u10"
    symbol = f"Sleef_{OPERATIONS[name].sleef}{kind.element[0]}{width}_{accuracy}"
    if not (width and OPERATIONS[name].sleef and _is_linked(symbol)):
        return 0
    vector = kind.of(width)
    function = external_function(symbol, vector, *[vector] * OPERATIONS[name].arity)
    return _row(name, dtype, width, function)


_ROWS: dict[str, Kernel] = {}
"""Row functions by their code; they live as long as the process, since their addresses do."""


def _row(name: str, dtype: torch.dtype, width: int, computed: Callable[..., Value]) -> int:
    """The address of a row function that computes `width` numbers at a time by `computed`."""
    real, sources = _numbers(dtype), ("source", "second")[: OPERATIONS[name].arity]

    def body(code: Code, count: Value, mode: Value, target: Pointer, **given: Pointer) -> None:
        n = count.signed_to(LONG)
        with code.loop(0, n, width) as j:
            there = code.lane_indices(LONG.of(width)) < (n - j).spread(width)
            ones = [(given[one] + j).load(width, there, other=0.5) for one in sources]  # of no matter
            (target + j).store(computed(code, *ones), there)

    kinds: dict[str, Kind] = {"count": INT, **dict.fromkeys((*sources, "target"), real), "mode": LONG}
    row = function(f"{name}_row", body, kinds, exported=True)
    text = source(row.texts)
    if text not in _ROWS:
        (_ROWS[text],) = assemble(text, (f"{name}_row",))
    return _ROWS[text].address
