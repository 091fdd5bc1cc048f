"""Batch normalisation within the pass of the neurons behind it."""

from hibana.nn.normalized.layer import Normalized, ends_in_norm

__all__ = ["Normalized", "ends_in_norm"]
