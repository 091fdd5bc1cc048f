"""Kernels for the CPU in LLVM's language: what one processor knows stays here."""
