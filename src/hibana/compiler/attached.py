"""The bits of the spikes in a piece of memory, attached to its storage.

Whatever shares the memory finds them, while it lives: views, ``detach()``, ``.data``. That the numbers still
are what the bits say is for the reader to check: a write through ``.data``, NumPy or DLPack leaves no trace.
Where a gradient is wanted, the node of autograd that made spikes has their bits too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Known", "known", "attach"]

_ATTRIBUTE = "_hibana_known"


class Known(NamedTuple):
    """What is known of numbers that fill their memory."""

    planes: Tensor
    """``[planes, pieces, bytes]``, in the order of memory: those of spikes are one."""
    length: int
    """Numbers of a piece."""
    most: int
    """The largest that a number can be."""
    place: tuple[int | torch.SymInt, int]
    """Where in the storage the numbers begin, and how many they are."""


def attach(numbers: Tensor, planes: Tensor, length: int, most: int = 1) -> None:
    """Attaches what is known to the memory of float32 `numbers`; arguments are as of :class:`Known`."""
    found = Known(planes, length, most, (numbers.storage_offset(), numbers.numel()))
    storage: Any = numbers.untyped_storage()
    setattr(storage, _ATTRIBUTE, found)


def known(numbers: Tensor) -> Known | None:
    """What is known of the memory that `numbers` are all of, if anything; not whether it still holds."""
    try:
        storage = numbers.untyped_storage()
    except NotImplementedError:  # sparse, or wrapped by torch.func
        return None
    found: Known | None = getattr(storage, _ATTRIBUTE, None)
    if found is None or found.place != (numbers.storage_offset(), numbers.numel()):
        return None
    return found
