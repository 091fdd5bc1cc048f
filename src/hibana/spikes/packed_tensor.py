"""Residuals of a checkpointed block packed into bits, where they are spikes or small whole numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import attach
from hibana.spikes.checks import kernels_accept
from hibana.spikes.layer import numbers_as_bits
from hibana.spikes.provenance import fills_memory, lookup

__all__ = ["PackedTensor"]

SMALLEST = 4096
"""Numbers below which a tensor is saved as it is."""


class PackedTensor(NamedTuple):
    """A tensor saved as bits, in its memory order."""

    bits: Tensor
    """``[planes, pieces, bytes]``, each piece padded to whole bytes."""
    factor: float
    shape: torch.Size
    strides: tuple[int, ...]
    most: int = 0
    """The largest possible number, if the bits were attached to the tensor; they are attached again then."""

    @classmethod
    def pack(cls, tensor: Tensor) -> "PackedTensor | Tensor":
        """What to save of `tensor`: its bits where it is spikes or small whole numbers, else itself."""
        count = tensor.numel()
        if count < SMALLEST or not kernels_accept(tensor) or not fills_memory(tensor):
            return tensor
        known = lookup(tensor)
        if known is not None and known.planes is not None:
            return cls(known.planes, 1.0, tensor.shape, tensor.stride(), known.most)
        if count % 64:
            return tensor
        found = numbers_as_bits(tensor.detach().as_strided((count // 64, 64), (64, 1)))
        if isinstance(found, str):
            return tensor
        return cls(found.bits.view(torch.uint8), found.factor, tensor.shape, tensor.stride())

    @staticmethod
    def unpack(kept: "PackedTensor | Tensor") -> Tensor:
        """The tensor that was given to :meth:`pack`, bit for bit."""
        if isinstance(kept, Tensor):
            return kept
        shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
        pieces = kept.bits.shape[1]
        length = kept.shape.numel() // pieces
        levels = torch.zeros(pieces, length, dtype=torch.uint8, device="cpu")
        for k, plane in enumerate(kept.bits):
            ones = (plane[..., None] >> shifts) & 1
            levels |= ones.view(pieces, -1)[:, :length] << k
        unpack = levels.to(torch.float32).mul_(kept.factor).as_strided(kept.shape, kept.strides)
        if kept.most:
            attach(unpack, kept.bits, length, kept.most)
        return unpack
