"""What a kernel's source may say beyond Numba: memory by address, and arrays that do not overlap.

This file is imported by generated source only; it is the one place that imports Numba at its top.
"""

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = [
    "bytes_at",
    "floats_at",
    "function",
    "ints_at",
    "kernel",
    "np",
]


def kernel(function):
    """A C function ``void (int64 begin, int64 end, int64 *args)``."""
    signature = "void(int64, int64, CPointer(int64))"
    return cfunc(signature, nopython=True, error_model="numpy", boundscheck=False)(function)


class _Disjoint(Compiler):
    """Numba's compiler, told that the array arguments of a function do not overlap."""

    def __init__(self, typing, target, library, args, return_type, flags, local):
        super().__init__(typing, target, library, args, return_type, flags, local)
        self.state.flags.noalias = True


def function(function):
    """A function that kernels call; **its array arguments must not overlap** where one is written."""
    return njit(pipeline_class=_Disjoint, error_model="numpy", boundscheck=False)(function)


@intrinsic
def _pointer(context, address):
    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@njit(inline="always")
def floats_at(address, count):
    """The float32 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.float32)


@njit(inline="always")
def bytes_at(address, count):
    """The uint8 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.uint8)


@njit(inline="always")
def ints_at(address, count):
    """The int64 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.int64)
