"""Kernels of the layers: built one by one, at the width of row that a layer needs, when first used."""
