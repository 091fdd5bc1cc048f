"""Which library function computes an operation bit for bit as this build of torch does."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from hibana.compiler.cpu.functions import library_function, own_function, sleef_function
from hibana.compiler.cpu.kernel_writer import MKL_MODE
from hibana.compiler.cpu.row_pass import kernel_says
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import OPERATIONS, Unsupported
from hibana.compiler.graph.plan import gradients
from hibana.compiler.graph.step import Step
from hibana.runtime.threads import libtorch

CPU = torch.device("cpu")


def vector_functions(step: Step, dtype: torch.dtype) -> dict[str, int]:
    """The addresses of the vector functions that `step` calls, by operation.

    They are those that this torch calls, where they are found; for the forward else hibana's own or the C
    library's. What only the backward calls may be missing: kernels then call the C library, or compute
    ``exp`` of float32 themselves.

    Raises:
        Unsupported: if there is none.
    """
    forward = {value.op for value in reachable(step.nexts) if value.is_call}
    found = {}
    for op in sorted(forward.union(v.op for v in reachable(gradients(step)) if v.is_call)):
        if op == "exp" and op not in forward and dtype != torch.float64:
            continue
        address = _vector_function(op, dtype)
        if not address and (op in forward or not kernel_says(op)):
            two = OPERATIONS[op].arity == 2  # Sleef's of one number are believed only where they are torch's
            address = own_function(op, dtype) or (two and sleef_function(op, dtype))
            address = address or library_function(op, dtype)
            if not address:
                raise Unsupported(f"{op} is nothing that hibana computes in {dtype} within 2 ulp")
        if address:
            found[op] = address
    return found


def approximate(step: Step, dtype: torch.dtype) -> tuple[str, ...]:
    """The operations in the forward of `step` that are not computed to this torch's own bits."""
    called = {value.op for value in reachable(step.nexts) if value.is_call}
    return tuple(op for op in sorted(called) if not _vector_function(op, dtype))


@cache
def _vector_function(op: str, dtype: torch.dtype) -> int:
    """The address of the function by which this torch computes `op`, or 0 if none gives torch's bits.

    They are compared on a sample and on pieces of every length: some of torch's differ where a tensor ends.
    """
    row = OPERATIONS[op]
    wanted = getattr(torch, op, None)
    if row.arity != 1 or row.hibana or wanted is None:
        return 0
    sample = _sample(dtype)
    expected = wanted(sample)
    pieces = [slice(first, first + 1 + first % 39) for first in range(0, sample.numel() - 40, 53)]
    alone = [(piece, wanted(sample[piece])) for piece in pieces]
    for address in (_mkl_function(op, dtype), sleef_function(op, dtype), library_function(op, dtype)):
        if not address:
            continue
        found = torch.empty_like(sample)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        prototype(address)(sample.numel(), sample.data_ptr(), found.data_ptr(), MKL_MODE)
        if _equal(found, expected) and all(_equal(found[piece], each) for piece, each in alone):
            return address
    return 0


def _sample(dtype: torch.dtype) -> Tensor:
    """Numbers of every size and sign, dense where functions bend."""
    even = torch.linspace(-20.0, 20.0, 4097, dtype=dtype, device=CPU)
    near = torch.linspace(-1.0, 1.0, 4097, dtype=dtype, device=CPU)
    sizes = torch.logspace(-45, 38, 4097, dtype=torch.float64, device=CPU).to(dtype)
    return torch.cat([even, near, sizes, -sizes])


def _equal(found: Tensor, expected: Tensor) -> bool:
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def _mkl_function(op: str, dtype: torch.dtype) -> int:
    name = ("vmd" if dtype == torch.float64 else "vms") + OPERATIONS[op].mkl
    if not OPERATIONS[op].mkl or not hasattr(libtorch(), name):
        return 0
    return ctypes.cast(getattr(libtorch(), name), ctypes.c_void_p).value or 0
