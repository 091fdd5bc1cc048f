"""Booleans packed into bits, eight to a byte."""

import torch
from torch import Tensor


def row_bytes(count: int) -> int:
    """Bytes of a row of `count` bits."""
    return (count + 7) // 8


def unpacked(bits: Tensor, count: int) -> Tensor:
    """The first `count` of each row of bits as 0 and 1, eight to a byte, the lowest bit first."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).flatten(-2)[..., :count]
