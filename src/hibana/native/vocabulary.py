"""What a kernel's source may say beyond Numba: memory by address, bits, and calls by address.

This file is imported by generated source only; it is the one place that imports Numba at its top.
"""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = [
    "bytes_at",
    "call_1",
    "doubles_at",
    "floats_at",
    "function",
    "ints_at",
    "kernel",
    "np",
    "pack",
    "prefetch",
    "prefetch_to_write",
    "scratch",
    "shorts_at",
    "unpack",
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
def doubles_at(address, count):
    """The float64 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.float64)


@njit(inline="always")
def bytes_at(address, count):
    """The uint8 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.uint8)


@njit(inline="always")
def shorts_at(address, count):
    """The int32 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.int32)


@njit(inline="always")
def ints_at(address, count):
    """The int64 array of `count` elements at `address`."""
    return carray(_pointer(address), (count,), np.int64)


@intrinsic(prefer_literal=True)
def scratch(context, size):
    """The address of `size` (a constant) bytes on the stack, aligned to 64, for the whole call."""
    if not isinstance(size, types.IntegerLiteral):
        raise TypeError("scratch takes a literal size")
    count = size.literal_value

    def build(context, builder, signature, args):
        with builder.goto_entry_block():  # alloca_once would also write zeros, byte by byte to LLVM
            block = builder.alloca(ir.ArrayType(ir.IntType(8), count))
        block.align = 64
        return builder.ptrtoint(block, ir.IntType(64))

    return types.int64(size), build


def _prefetch_line(to_write):
    """``llvm.prefetch`` of the cache line at an address, to the first level."""

    @intrinsic
    def line(context, address):
        def build(context, builder, signature, args):
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            target = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(target, [builder.inttoptr(args[0], byte), word(to_write), word(3), word(1)])
            return context.get_dummy_value()

        return types.void(types.int64), build

    return line


_line_to_read, _line_to_write = _prefetch_line(0), _prefetch_line(1)


@njit(inline="always")
def prefetch(address, size):
    """Asks for `size` bytes at `address` to be at hand soon: a row of the next step is another page."""
    for at in range(address, address + size, 64):
        _line_to_read(at)


_ASKS_TO_WRITE = not llvm.get_host_cpu_name().startswith("znver")
"""Zen's own prefetching of lines to write is better left alone: a small layer took twice as long."""


@njit(inline="always")
def prefetch_to_write(address, size):
    """Asks for `size` bytes at `address` to be at hand for writing soon, on CPUs where that helps."""
    if _ASKS_TO_WRITE:
        for at in range(address, address + size, 64):
            _line_to_write(at)


@intrinsic
def _pack_64(context, bools, start):
    """64 booleans (uint8, 0 or not) from ``bools[start]`` on, as the bits of a word, lowest first."""

    def build(context, builder, signature, args):
        data = context.make_array(bools)(context, builder, args[0]).data
        at = builder.gep(data, [args[1]])
        lanes = ir.VectorType(ir.IntType(8), 64)
        block = builder.load(builder.bitcast(at, lanes.as_pointer()))
        block.align = 1
        set_ = builder.icmp_unsigned("!=", block, ir.Constant(lanes, None))
        return builder.bitcast(set_, ir.IntType(64))

    return types.uint64(bools, types.int64), build


@intrinsic
def _unpack_64(context, word, bools, start):
    """The bits of `word` as 64 booleans (uint8, 0 or 1) to ``bools[start]`` on."""

    def build(context, builder, signature, args):
        data = context.make_array(bools)(context, builder, args[1]).data
        at = builder.gep(data, [args[2]])
        lanes = ir.VectorType(ir.IntType(8), 64)
        set_ = builder.bitcast(args[0], ir.VectorType(ir.IntType(1), 64))
        store = builder.store(builder.zext(set_, lanes), builder.bitcast(at, lanes.as_pointer()))
        store.align = 1
        return context.get_dummy_value()

    return types.void(types.uint64, bools, types.int64), build


@njit(inline="always")
def pack(bools, bits, count):
    """The first `count` booleans of `bools` as bits, lowest first, and zeros to the end of the last byte.

    `bools` is readable to a multiple of 64.
    """
    whole = count // 64
    words = bits[: whole * 8].view(np.uint64)
    for i in range(whole):
        words[i] = _pack_64(bools, i * 64)
    if whole * 64 < count:
        mine = (np.uint64(1) << np.uint64(count - whole * 64)) - np.uint64(1)
        last = _pack_64(bools, whole * 64) & mine
        for j in range((count - whole * 64 + 7) // 8):
            bits[whole * 8 + j] = np.uint8((last >> np.uint64(8 * j)) & np.uint64(255))


@njit(inline="always")
def unpack(bits, bools, count):
    """Inverse of :func:`pack`; `bools` is writable to a multiple of 64."""
    whole = count // 64
    words = bits[: whole * 8].view(np.uint64)
    for i in range(whole):
        _unpack_64(words[i], bools, i * 64)
    if whole * 64 < count:
        last = np.uint64(0)
        for j in range((count - whole * 64 + 7) // 8):
            last |= np.uint64(bits[whole * 8 + j]) << np.uint64(8 * j)
        _unpack_64(last, bools, whole * 64)


@intrinsic
def call_1(context, address, count, source, target):
    """Calls ``void f(int32 count, const void *source, void *target, int64 mode)`` at `address`.

    The signature of the vector mathematics functions of Intel's MKL; the mode asks for high accuracy,
    denormals kept, errors ignored.
    """

    def build(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32), byte, byte, ir.IntType(64)])
        target_function = builder.inttoptr(args[0], kind.as_pointer())
        operands = [
            builder.trunc(args[1], ir.IntType(32)),
            builder.inttoptr(args[2], byte),
            builder.inttoptr(args[3], byte),
            ir.Constant(ir.IntType(64), 0x2 | 0x100 | 0x140000),
        ]
        builder.call(target_function, operands)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), build
