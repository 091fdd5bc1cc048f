"""What a kernel's source may say beyond Numba: memory by address, and arrays that do not overlap.

This file is imported by generated source only; it is the one place that imports Numba at its top.
"""

import numpy as np
from numba import cfunc, njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

__all__ = [
    "bytes_at",
    "floats_at",
    "function",
    "int32s_at",
    "ints_at",
    "kernel",
    "np",
    "places_at",
    "words_at",
]


def kernel(function):
    """A C function ``void (int64 begin, int64 end, int64 *args)``."""
    signature = "void(int64, int64, CPointer(int64))"
    return cfunc(signature, nopython=True, error_model="numpy", boundscheck=False)(function)


class _Disjoint(Compiler):
    """Numba's compiler, told of a function that its array arguments do not overlap, and that kernels call it.

    Without that it would make an entry for Python and one for C beside each.
    """

    def __init__(self, typing, target, library, args, return_type, flags, local):
        super().__init__(typing, target, library, args, return_type, flags, local)
        self.state.flags.noalias = True
        self.state.flags.no_cpython_wrapper = self.state.flags.no_cfunc_wrapper = True


def function(function):
    """A function that kernels call; **its array arguments must not overlap** where one is written."""
    return njit(pipeline_class=_Disjoint, error_model="numpy", boundscheck=False)(function)


def _array_of(kind):
    """The function ``(address, count)`` that gives the array of `count` elements of `kind` at `address`.

    Numba's ``carray`` does the same, but what it is made of is inferred anew at each call.
    """
    array = types.Array(kind, 1, "C")

    def at(context, address, count):
        def build(context, builder, signature, args):
            place = builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())
            size = context.get_constant(types.intp, kind.bitwidth // 8)
            made = make_array(array)(context, builder)
            populate_array(made, place, shape=[args[1]], strides=[size], itemsize=size, meminfo=None)
            return made._getvalue()

        return array(types.int64, types.int64), build

    return intrinsic(at)


floats_at = _array_of(types.float32)
bytes_at = _array_of(types.uint8)
places_at = _array_of(types.uint16)
int32s_at = _array_of(types.int32)
ints_at = _array_of(types.int64)
words_at = _array_of(types.uint64)
