"""Building, caching and running native code on torch's threads: what `compiler` and `spikes` stand on.

Importing the package loads nothing, since `openmp_spin` must run before torch is imported.
What kernels are written with is :mod:`hibana.runtime.kernels`.
"""
