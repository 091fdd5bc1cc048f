"""A network as one file of C99: without Python, dependencies or allocation.

What a step comes to in C is :mod:`hibana.compiler.c`; here are layers, memory and the file.
"""

from hibana.network.c.program import Cost, CProgram, exact_dtype, to_c

__all__ = ["CProgram", "Cost", "exact_dtype", "to_c"]
