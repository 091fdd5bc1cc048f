"""Exports the names with which other packages write, compile and run kernels.

`code`, `values` and `pointers` build the statements of `loops` from Python expressions, and `llvm` prints
them as LLVM IR. `build` compiles the IR and caches object code on disk, `threads` runs it on torch's threads,
and `launcher` binds arguments by name. The first kernel that is compiled loads LLVM.
"""

from hibana.runtime.build import (
    COMPILING,
    Kernel,
    assemble,
    compresses,
    is_amd,
    multiplies_full_vectors,
    toolchain_folder,
)
from hibana.runtime.code import Code, Variable
from hibana.runtime.functions import Function, definition, external_function, function
from hibana.runtime.launcher import Launcher, address_of, kernel
from hibana.runtime.llvm import module
from hibana.runtime.pointers import Bytes, Doubles, Floats, Ints, Kind, Longs, Pointer, Shorts
from hibana.runtime.threads import bind_kernel, pack_arguments, run
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Group, Value, float_bits
