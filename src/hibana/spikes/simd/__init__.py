"""SIMD building blocks of the kernels: rows of packed weights, lists of set bits, and tables of sums."""
