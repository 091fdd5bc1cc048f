"""What kernels of layers share: rows of packed weights, and lists of bits."""
