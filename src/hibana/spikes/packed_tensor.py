"""Residuals of a checkpointed block, packed into bits if they are spikes or small whole numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import attach
from hibana.spikes.checks import kernels_accept
from hibana.spikes.layer import pack_numbers
from hibana.spikes.provenance import fills_memory, lookup

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
    max_value: int = 0
    """Upper bound of the numbers if the bits were attached to the tensor, to attach them again; else 0."""

    @classmethod
    def pack(cls, tensor: Tensor) -> "PackedTensor | Tensor":
        """The bits of `tensor` if it holds spikes or small whole numbers, else `tensor` itself."""
        count = tensor.numel()
        if count < SMALLEST or not kernels_accept(tensor) or not fills_memory(tensor):
            return tensor
        provenance = lookup(tensor)
        if provenance is not None and provenance.planes is not None:
            return cls(provenance.planes, 1.0, tensor.shape, tensor.stride(), provenance.max_value)
        if count % 64:
            return tensor
        planes = pack_numbers(tensor.detach().as_strided((count // 64, 64), (64, 1)))
        if isinstance(planes, str):
            return tensor
        return cls(planes.bits.view(torch.uint8), planes.factor, tensor.shape, tensor.stride())

    @staticmethod
    def unpack(packed: "PackedTensor | Tensor") -> Tensor:
        """The argument of :meth:`pack`, bit for bit, from its result."""
        if isinstance(packed, Tensor):
            return packed
        shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
        pieces = packed.bits.shape[1]
        length = packed.shape.numel() // pieces
        levels = torch.zeros(pieces, length, dtype=torch.uint8, device="cpu")
        for k, plane in enumerate(packed.bits):
            ones = (plane[..., None] >> shifts) & 1
            levels |= ones.view(pieces, -1)[:, :length] << k
        numbers = levels.to(torch.float32).mul_(packed.factor).as_strided(packed.shape, packed.strides)
        if packed.max_value:
            attach(numbers, packed.bits, length, packed.max_value)
        return numbers
