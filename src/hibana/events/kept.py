"""Tensors kept for a backward as bits, where they are spikes or small whole numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.events.checks import plain
from hibana.events.layer import numbers_as_bits
from hibana.events.support import fills_memory

__all__ = ["Kept"]

SMALLEST = 4096
"""Fewer numbers are kept as they are."""


class Kept(NamedTuple):
    """A tensor of which bits are kept, in the order in which it lay in memory."""

    bits: Tensor
    """``[planes, rows, words]``."""
    factor: float
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Kept | Tensor":
        """What to keep of `tensor`: itself, unless bits say the same in less memory."""
        count = tensor.numel()
        if count < SMALLEST or count % 64 or not plain(tensor) or not fills_memory(tensor):
            return tensor
        found = numbers_as_bits(tensor.detach().as_strided((count // 64, 64), (64, 1)))
        if isinstance(found, str):
            return tensor
        return cls(found.bits, found.factor, tensor.shape, tensor.stride())

    @staticmethod
    def numbers(kept: "Kept | Tensor") -> Tensor:
        """The tensor that :meth:`of` kept, to its last bit."""
        if isinstance(kept, Tensor):
            return kept
        shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
        levels = torch.zeros(kept.shape.numel(), dtype=torch.uint8, device="cpu")
        for k, plane in enumerate(kept.bits):
            ones = (plane.view(torch.uint8).view(-1, 1) >> shifts) & 1
            levels |= ones.view(-1) << k
        return levels.to(torch.float32).mul_(kept.factor).as_strided(kept.shape, kept.strides)
