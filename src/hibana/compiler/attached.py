"""The bits of the spikes in a tensor, attached to its storage, so that views and ``detach()`` have them too.

The reader must check that the numbers are still those: a write through ``.data``, NumPy or DLPack leaves no
trace. Where a gradient is wanted, the node of autograd that made the spikes has their bits too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ATTRIBUTE = "_hibana_known"
RUNS: set[type] = set()
"""Classes of the attribute ``specification`` by which the nodes of compiled runs are told from others."""


class Known(NamedTuple):
    """What is known of the numbers in a stretch of a storage."""

    planes: Tensor
    """Bit planes ``[planes, pieces, bytes]`` in memory order; spikes have one."""
    length: int
    """Numbers per piece."""
    most: int
    """The largest number that is possible."""
    place: tuple[int | torch.SymInt, int]
    """The offset in the storage, and how many numbers there are."""


def attach(numbers: Tensor, planes: Tensor, length: int, most: int = 1) -> None:
    """Attaches what is known to the memory of float32 `numbers`; arguments are as of :class:`Known`."""
    found = Known(planes, length, most, (numbers.storage_offset(), numbers.numel()))
    storage: Any = numbers.untyped_storage()
    setattr(storage, _ATTRIBUTE, found)


def known(numbers: Tensor) -> Known | None:
    """What was attached to just the memory of `numbers`, if anything; not whether it is still true."""
    try:
        storage = numbers.untyped_storage()
    except NotImplementedError:  # sparse, or wrapped by torch.func
        return None
    found: Known | None = getattr(storage, _ATTRIBUTE, None)
    if found is None or found.place != (numbers.storage_offset(), numbers.numel()):
        return None
    return found
