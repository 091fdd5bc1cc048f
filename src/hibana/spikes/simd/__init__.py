"""SIMD building blocks that kernels share: panels of packed weights, and lists of set bits."""
