"""Tensors offset within their page against 4K aliasing with what is read while they are written."""

import torch
from torch import Tensor

from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import OUTPUT_OFFSET, PAGE

__all__ = ["ALIASING_FROM", "unaliased"]

ALIASING_FROM = 256 << 10
"""Bytes from which on 4K aliasing matters; a page more is little then."""


def unaliased(read: Tensor, shape: torch.Size) -> Tensor:
    """A new tensor of `shape`, offset within a page so that stores to it and loads from `read` do not alias.

    See :data:`hibana.compiler.cpu.row_walk.OUTPUT_OFFSET`. A small one begins where its memory does.
    """
    count, dtype = shape.numel(), read.dtype
    if count * dtype.itemsize < ALIASING_FROM:
        if read.shape == shape and read.is_contiguous():
            return torch.empty_like(read)  # sizes that come from Python take twice as long
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = torch.empty(count + PAGE // dtype.itemsize, dtype=dtype, device="cpu")
    shift = (read.data_ptr() + OUTPUT_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
    buffer.set_(buffer.untyped_storage(), shift // dtype.itemsize, shape, ())
    return buffer.data  # to which nothing was written yet, as others may ask of its version
