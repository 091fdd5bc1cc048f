"""All that kernels are written with: a facade of the package for `compiler` and `spikes`.

`code`, `values` and `pointers` emit LLVM IR from Python expressions (`writer`), `build` compiles it and keeps
it on disk, `threads` runs it on torch's threads, and `launcher` binds arguments by name. LLVM is loaded by
the first kernel that is built.
"""

from hibana.runtime.build import COMPILING, Kernel, assemble, compresses, toolchain_folder
from hibana.runtime.code import Code, Variable
from hibana.runtime.functions import Function, external_function, function, source
from hibana.runtime.launcher import BoundLauncher, Launcher, address_of, kernel
from hibana.runtime.pointers import Bytes, Doubles, Floats, Ints, Kind, Longs, Pointer, Shorts
from hibana.runtime.threads import BoundKernel, bind_kernel, pack_arguments, run
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type
from hibana.runtime.values import Group, Value, float_bits
