"""All that kernels are written with: a facade of the package for `compiler` and `spikes`.

`code`, `values` and `pointers` emit LLVM IR from Python expressions (`writer`), `build` compiles it and keeps
it on disk, `threads` runs it on torch's threads, and `launcher` binds arguments by name. LLVM is loaded by
the first kernel that is built.
"""

from hibana.runtime.build import COMPILING, Kernel, assemble, compresses, kept_in
from hibana.runtime.code import Code, Variable
from hibana.runtime.functions import Function, declared, function, source
from hibana.runtime.launcher import Launcher, Sized, address_of, kernel
from hibana.runtime.pointers import Bytes, Doubles, Floats, Ints, Kind, Longs, Pointer, Shorts
from hibana.runtime.threads import Work, arguments, ready, run
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Group, Value, float_bits
