"""Residuals of a checkpointed block, packed into bits if they are spikes or small whole numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.memory_layout import fills_memory, unpack_bits
from hibana.spikes.bits import pack_binary, pack_integers
from hibana.spikes.checks import kernels_accept

__all__ = ["PackedTensor"]

SMALLEST = 4096
"""Number of elements below which a tensor is not packed."""


class PackedTensor(NamedTuple):
    """A tensor saved as bits, in its memory order."""

    bits: Tensor
    """``[planes, pieces, bytes]``, each piece padded to whole bytes."""
    factor: float
    """Factor of the whole numbers in `bits`."""
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def pack(cls, tensor: Tensor) -> "PackedTensor | Tensor":
        """The bits of `tensor` if it holds spikes or small whole numbers, else `tensor` itself."""
        count = tensor.numel()
        if count < SMALLEST or not kernels_accept(tensor) or not fills_memory(tensor):
            return tensor
        if count % 64:
            return tensor
        rows = tensor.detach().as_strided((count // 64, 64), (64, 1))
        planes = pack_binary(rows) or pack_integers(rows, lambda: rows)
        if planes is None:
            return tensor
        return cls(planes.bits.view(torch.uint8), planes.factor, tensor.shape, tensor.stride())

    @staticmethod
    def unpack(packed: "PackedTensor | Tensor") -> Tensor:
        """The argument of :meth:`pack`, bit for bit, from its result."""
        if isinstance(packed, Tensor):
            return packed
        length = packed.shape.numel() // packed.bits.shape[1]
        levels = torch.stack([unpack_bits(plane, length) << k for k, plane in enumerate(packed.bits)])
        numbers = levels.sum(0, dtype=torch.float32).mul_(packed.factor)
        return numbers.as_strided(packed.shape, packed.strides)
