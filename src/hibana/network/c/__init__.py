"""A network as one file of C99, without Python, dependencies or allocation.

:mod:`hibana.compiler.c` writes the steps of neurons; this folder writes layers, memory and the file.
"""

from hibana.network.c.program import Cost, CProgram, exact_dtype, to_c

__all__ = ["CProgram", "Cost", "exact_dtype", "to_c"]
