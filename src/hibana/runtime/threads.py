"""Runs native functions on torch's own thread pool.

A second thread pool would spin against torch's for the same cores. libtorch exports ``at::parallel_for``
through its stable C interface (torch >= 2.10), so kernels share torch's threads and follow
``torch.set_num_threads``. ctypes releases the GIL during the call.
"""

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch


def libtorch() -> ctypes.CDLL:
    """The shared library of torch's CPU kernels, which importing torch has loaded."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


@cache
def parallel_for() -> "ctypes._NamedFuncPointer":
    """``torch_parallel_for(begin, end, grain, function, arguments)``.

    Raises:
        OSError: if libtorch is not at its place in torch's wheels.
        AttributeError: if libtorch does not export the function.
    """
    function = libtorch().torch_parallel_for
    function.argtypes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    function.restype = ctypes.c_int32
    return function


_Serial = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def pack_arguments(values: Sequence[int]) -> bytes:
    """Packs `values` (addresses, sizes) into the argument block of a kernel."""
    return struct.pack(f"{len(values)}q", *values)


def run(address: int, count: int, args: bytes, grain: int = 1) -> None:
    """Runs a kernel over ``range(count)``, on torch's threads if `count` is more than `grain`.

    Args:
        address: the address of a C function ``void (int64 begin, int64 end, void *args)``.
        count: number of work items.
        args: the argument block.
        grain: minimum number of work items per thread.

    Raises:
        RuntimeError: if torch reports an error.
    """
    bind_kernel(address, count, grain)(args)


def bind_kernel(address: int, count: int, grain: int = 1) -> Callable[[bytes], None]:
    """A function of the argument block `args` that calls :func:`run`, faster when called repeatedly."""
    if count <= grain:
        return partial(_Serial(address), 0, count)
    parallel = partial(parallel_for(), 0, count, grain, address)

    def run_parallel(args: bytes) -> None:
        """Runs the kernel on torch's threads with the argument block `args`."""
        if parallel(args):
            raise RuntimeError(f"torch_parallel_for failed over {count} pieces of work")

    return run_parallel
