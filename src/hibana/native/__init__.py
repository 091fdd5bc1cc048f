"""Kernels, and torch's threads to run them on: what `loop` and `events` stand on.

Nothing here knows about neurons, spikes or tensors' meaning. A kernel is lines of LLVM's language (`writer`),
which `code`, `values` and `pointers` write for who computes with them in Python; `build` compiles them and
keeps them on disk, `threads` runs them, and `launcher` binds their arguments by name. Importing this package
loads neither LLVM nor torch's extensions; building does.
"""

from hibana.native.build import COMPILING, Kernel, assemble, kept_in
from hibana.native.code import Code, Variable
from hibana.native.launcher import Launcher, kernel
from hibana.native.pointers import Bytes, Floats, Ints, Longs, Pointer, Shorts
from hibana.native.threads import Work, arguments, ready, run
from hibana.native.values import BIT, BYTE, FLOAT, INT, LONG, SHORT, Group, Type, Value
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
    "Group",
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
    "kept_in",
    "kernel",
    "named",
    "ready",
    "run",
]
