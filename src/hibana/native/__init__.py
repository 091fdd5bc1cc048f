"""Source to native functions that run on torch's own threads: what `loop` and `events` stand on.

Nothing here knows about neurons, spikes or tensors' meaning. `assemble` and `build` turn source into
functions and keep them on disk, `threads` runs them, `vocabulary` is what the source may say beyond Numba.
Importing this package loads neither Numba nor torch's extensions; building does.
"""

from hibana.native.build import COMPILING, Kernel, assemble, build, kept_in
from hibana.native.code import Code, Variable
from hibana.native.launcher import Launcher, kernel
from hibana.native.pointers import Bytes, Floats, Ints, Longs, Pointer, Shorts
from hibana.native.threads import Work, arguments, ready, run
from hibana.native.values import BIT, BYTE, FLOAT, INT, LONG, SHORT, Type, Value
from hibana.native.writer import Writer, named

__all__ = [
    "BIT",
    "BYTE",
    "COMPILING",
    "FLOAT",
    "INT",
    "LONG",
    "SHORT",
    "Bytes",
    "Code",
    "Floats",
    "Ints",
    "Kernel",
    "Launcher",
    "Longs",
    "Pointer",
    "Shorts",
    "Type",
    "Value",
    "Variable",
    "Work",
    "Writer",
    "arguments",
    "assemble",
    "build",
    "kept_in",
    "kernel",
    "named",
    "ready",
    "run",
]
