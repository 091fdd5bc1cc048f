"""The functions of rows of numbers that kernels call, and the choice of those with PyTorch's own bits.

A vector function is ``void (int32 count, *source, …, *target, int64 mode)``, the signature of Intel's MKL,
and is passed by its address.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hibana.compiler.cpu.kernel_writer import MKL_MODE
from hibana.compiler.cpu.vector_math import FUNCTIONS, VECTOR, lane_by_lane
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import OPERATIONS, Unsupported
from hibana.compiler.graph.plan import gradients
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import (
    DOUBLE,
    FLOAT,
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
    definition,
    external_function,
    module,
)
from hibana.runtime.threads import libtorch

SLEEF_BYTES = {"AVX512": 64, "AVX2": 32}
"""Bytes of the vectors that PyTorch passes to Sleef, by the processor's capability."""


def vector_functions(step: Step, dtype: torch.dtype) -> dict[str, int]:
    """The addresses of the vector functions that `step` calls, by operation.

    Each is the function that gives this torch's bits, otherwise hibana's own, Sleef's or the C library's. In
    float32 the kernels themselves compute ``exp`` of the backward alone, and operations whose expansion is
    based on ``exp``. Raises Unsupported if an operation has no function.
    """
    forward = {value.op for value in reachable(step.nexts) if value.is_call}
    addresses = {}
    for op in sorted(forward.union(v.op for v in reachable(gradients(step)) if v.is_call)):
        in_loop = dtype != torch.float64 and (op == "exp" or OPERATIONS[op].expansion)
        if in_loop and op not in forward:
            continue
        is_binary = OPERATIONS[op].arity == 2  # Sleef's functions of one number must have torch's bits
        address = _exact_function(op, dtype) or hibana_function(op, dtype)
        address = address or (is_binary and sleef_function(op, dtype)) or library_function(op, dtype)
        if not address:
            raise Unsupported(f"{op} of {dtype} has no function within 2 ulp")
        addresses[op] = address
    return addresses


def approximate(step: Step, dtype: torch.dtype) -> tuple[str, ...]:
    """The operations in the forward of `step` whose results differ from this torch's bits."""
    called = {value.op for value in reachable(step.nexts) if value.is_call}
    return tuple(op for op in sorted(called) if not _exact_function(op, dtype))


@cache
def _exact_function(op: str, dtype: torch.dtype) -> int:
    """The address of a vector function whose results equal those of ``torch.{op}`` bit for bit, or 0.

    Results are compared on a sample, and on pieces of every length: some of torch's results differ near the
    end of a tensor.
    """
    row = OPERATIONS[op]
    torch_function = getattr(torch, op, None)
    if row.arity != 1 or row.hibana or torch_function is None:
        return 0
    sample = _sample(dtype)
    expected = torch_function(sample)
    slices = [slice(first, first + 1 + first % 39) for first in range(0, sample.numel() - 40, 53)]
    pieces = [(piece, torch_function(sample[piece])) for piece in slices]
    for address in (_mkl_function(op, dtype), sleef_function(op, dtype), library_function(op, dtype)):
        if not address:
            continue
        results = torch.empty_like(sample)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        prototype(address)(sample.numel(), sample.data_ptr(), results.data_ptr(), MKL_MODE)
        if _equal(results, expected) and all(_equal(results[piece], values) for piece, values in pieces):
            return address
    return 0


def _sample(dtype: torch.dtype) -> Tensor:
    """Numbers of every magnitude and sign, dense where functions bend."""
    wide = torch.linspace(-20.0, 20.0, 4097, dtype=dtype, device="cpu")
    near_zero = torch.linspace(-1.0, 1.0, 4097, dtype=dtype, device="cpu")
    magnitudes = torch.logspace(-45, 38, 4097, dtype=torch.float64, device="cpu").to(dtype)
    return torch.cat([wide, near_zero, magnitudes, -magnitudes])


def _equal(results: Tensor, expected: Tensor) -> bool:
    """Whether all numbers are equal or both NaN."""
    return bool(((results == expected) | (results.isnan() & expected.isnan())).all())


def _mkl_function(op: str, dtype: torch.dtype) -> int:
    """The address of the MKL function for `op` inside libtorch, or 0."""
    name = ("vmd" if dtype == torch.float64 else "vms") + OPERATIONS[op].mkl
    return _symbol_address(name) if OPERATIONS[op].mkl else 0


def hibana_function(op: str, dtype: torch.dtype) -> int:
    """The address of hibana's own vector function for the operation `op`, or 0."""
    if op not in FUNCTIONS:
        return 0

    def compute(code: Code, x: Value) -> Value:
        """The results of a vector `x`, computed in float64 and rounded to its type."""
        return FUNCTIONS[op](code, x.to(DOUBLE)).to(x.type)

    return _row(op, dtype, VECTOR, compute)


def library_function(op: str, dtype: torch.dtype) -> int:
    """The address of a function that applies the C library's `op` to each number of a row.

    0 if the C library has no function for the operation.
    """
    if not OPERATIONS[op].libm:
        return 0
    number = _pointer_type(dtype).element
    name = OPERATIONS[op].libm + ("f" if number is FLOAT else "")
    of_number = external_function(name, number, *[number] * OPERATIONS[op].arity)
    return _row(op, dtype, VECTOR, lambda code, *arguments: lane_by_lane(code, of_number, arguments))


def sleef_function(op: str, dtype: torch.dtype) -> int:
    """The address of a vector function that calls the Sleef library inside libtorch for `op`, or 0."""
    element = _pointer_type(dtype).element
    width = SLEEF_BYTES.get(torch.backends.cpu.get_cpu_capability(), 0) // element.size
    accuracy = "u05" if op == "hypot" else "u10"
    symbol = f"Sleef_{OPERATIONS[op].sleef}{element.element[0]}{width}_{accuracy}"
    if not (width and OPERATIONS[op].sleef and (address := _symbol_address(symbol))):
        return 0
    import llvmlite.binding as llvm

    llvm.add_symbol(symbol, address)
    vector = element.of(width)
    return _row(op, dtype, width, external_function(symbol, vector, *[vector] * OPERATIONS[op].arity))


def _symbol_address(symbol: str) -> int:
    """The address of a symbol of libtorch, or 0."""
    if not hasattr(libtorch(), symbol):
        return 0
    return ctypes.cast(getattr(libtorch(), symbol), ctypes.c_void_p).value or 0


def _pointer_type(dtype: torch.dtype) -> type[Pointer]:
    """The type of pointers to numbers of `dtype`."""
    return Doubles if dtype == torch.float64 else Floats


_ROWS: dict[str, Kernel] = {}
"""Vector functions by their code. They are never freed, since kernels hold their addresses."""


def _row(op: str, dtype: torch.dtype, width: int, compute: Callable[..., Value]) -> int:
    """Compiles a function that applies `op` to arrays of numbers; returns its address.

    ``compute(code, *arguments)`` writes the code for `width` numbers at a time.
    """
    pointer, sources = _pointer_type(dtype), ("source", "second")[: OPERATIONS[op].arity]

    def body(code: Code, count: Value, mode: Value, target: Pointer, **rows: Pointer) -> None:
        """Writes the loop over a row; lanes after its end read 0.5, a number without a special case."""
        n = count.signed_to(LONG)
        with code.loop(0, n, width) as j:
            valid = code.lane_indices(LONG.of(width)) < (n - j).spread(width)
            arguments = [(rows[name] + j).load(width, valid, other=0.5) for name in sources]
            (target + j).store(compute(code, *arguments), valid)

    kinds: dict[str, Kind] = {"count": INT, **dict.fromkeys((*sources, "target"), pointer), "mode": LONG}
    text = module(definition(f"{op}_row", body, kinds, "exported"))
    if text not in _ROWS:
        _ROWS[text] = assemble(text, f"{op}_row")
    return _ROWS[text].address
