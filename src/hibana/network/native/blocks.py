"""Blocks of memory that a step reads and writes: arrays one after the other, each on its own cache lines."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.network.lowering import Kind
from hibana.runtime.code import LINE

__all__ = ["Array", "Block", "pack_bits", "unpack_bits"]


@dataclass(frozen=True, eq=False)
class Array:
    """One array of a stream's state."""

    layer: str
    kind: Kind
    offset: int
    """In bytes, from the beginning of a sample's block."""
    shape: tuple[int, ...]
    """Of one sample, as PyTorch has it; a ring has its steps first."""
    order: Tensor
    """Which number of PyTorch's lies at each place, in a step."""


class Block:
    """A block under construction."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, values: Tensor) -> int:
        """Appends the bytes of `values`; returns where they begin."""
        flat = values.detach().resolve_neg().contiguous().flatten()
        offset = self.reserve(flat.numel() * flat.element_size())
        self._parts.append((offset, flat.view(torch.uint8)))
        return offset

    def reserve(self, size: int) -> int:
        """Appends `size` bytes, which are zero at first; returns where they begin."""
        offset, self.size = self.size, self.size + -(-size // LINE) * LINE
        return offset

    def packed(self) -> Tensor:
        """The block, ``[size]`` bytes."""
        block = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        for offset, values in self._parts:
            block[offset : offset + len(values)] = values
        return block


def pack_bits(values: Tensor) -> Tensor:
    """Zeros and ones ``[..., n]`` as bits, the first lowest, in whole words of 64: ``[..., bytes]``."""
    count = values.shape[-1]
    padded = torch.zeros(*values.shape[:-1], -(-count // 64) * 64, dtype=torch.uint8, device="cpu")
    padded[..., :count] = values
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device="cpu")
    octets: Tensor = padded.view(*values.shape[:-1], -1, 8) * weights
    return octets.sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The first `count` bits of ``[..., bytes]``, as zeros and ones of `dtype`."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device="cpu") & 1
    return bits.flatten(-2)[..., :count].to(dtype)
