"""What kernels are written with, and torch's threads that run them, for `compiler` and `spikes`.

Nothing here knows about neurons, spikes or tensors' meaning. A kernel is lines of LLVM's language (`writer`),
which `code`, `values` and `pointers` write for who computes with them in Python; `build` compiles them and
keeps them on disk, `threads` runs them, and `launcher` binds their arguments by name. Importing this package
loads neither LLVM nor torch's extensions; building does.
"""

from hibana.runtime.build import COMPILING, Kernel, assemble, compresses, kept_in
from hibana.runtime.code import Code, Variable
from hibana.runtime.functions import Function, declared, function, source
from hibana.runtime.launcher import Call, Launcher, Sized, kernel
from hibana.runtime.pointers import Bytes, Doubles, Floats, Ints, Kind, Longs, Pointer, Shorts
from hibana.runtime.threads import Work, arguments, ready, run
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Group, Value, float_bits

__all__ = [
    "BIT",
    "BYTE",
    "COMPILING",
    "DOUBLE",
    "FLOAT",
    "INT",
    "LONG",
    "SHORT",
    "Bytes",
    "Call",
    "Code",
    "Doubles",
    "Floats",
    "Function",
    "Group",
    "Ints",
    "Kernel",
    "Kind",
    "Launcher",
    "Longs",
    "Pointer",
    "Shorts",
    "Sized",
    "Type",
    "Value",
    "Variable",
    "Work",
    "arguments",
    "assemble",
    "compresses",
    "declared",
    "float_bits",
    "function",
    "kept_in",
    "kernel",
    "ready",
    "run",
    "source",
]
