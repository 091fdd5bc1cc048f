"""Batch normalisation within the pass of the neurons behind it."""

from hibana.nn.normalized.layer import Normalized

__all__ = ["Normalized"]
