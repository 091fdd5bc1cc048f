"""What is known of the spikes in a tensor, attached to its storage: the one mechanism for spikes as bits.

Two facts travel with a tensor, both optional:

- its numbers as bits, known for every tensor that has all of this memory. The reader must compare them with
  the numbers: a write through ``.data``, NumPy or DLPack leaves no trace;
- where the layer that emitted it needs the gradient, and who observes that gradient. This is known only for
  the tensor objects that were registered: the layer's output, and views that hibana makes of it. Of any other
  view the gradient is computed everywhere.
"""

from collections import OrderedDict
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from hibana.runtime import torch_internals

__all__ = ["Known", "Observers", "Source", "attach", "known", "pass_on", "source_of"]

Observers = tuple[tuple["ref[Tensor]", "ref[OrderedDict[int, Any]]"], ...]
"""Tensors between producer and consumer, and the dictionaries that all of their hooks enter."""
_ATTRIBUTE = "_hibana_known"


class Source(NamedTuple):
    """Where the gradient of one tensor object is needed."""

    tensor: "ref[Tensor]"
    version: int
    """The tensor's version counter: after a write in place, the gradient is needed everywhere."""
    strides: tuple[int, ...]
    mask: Tensor | None
    """Bits ``[pieces, bytes]`` in memory order, set where the surrogate's derivative can be non-zero; None:
    where the spikes are."""
    observers: Observers


class Known(NamedTuple):
    """What is known of a stretch of a storage."""

    planes: Tensor | None
    """Its numbers as bit planes ``[planes, pieces, bytes]`` in memory order; spikes have one."""
    length: int
    """Numbers per piece."""
    most: int
    """The largest possible number."""
    place: tuple[int | torch.SymInt, int]
    """The offset in the storage, and how many numbers there are."""
    sources: tuple[Source, ...] = ()


def attach(
    tensor: Tensor,
    planes: Tensor | None,
    length: int,
    most: int = 1,
    *,
    mask: Tensor | None = None,
    observers: Observers | None = None,
) -> None:
    """Attaches what is known to the memory of a float32 `tensor`; the arguments are as of :class:`Known`.

    `mask` and `observers` are as of :class:`Source`, without the tensor itself; None: the gradient is needed
    everywhere.
    """
    sources = () if observers is None else (_source(tensor, mask, observers),)
    place = tensor.storage_offset(), tensor.numel()
    setattr(tensor.untyped_storage(), _ATTRIBUTE, Known(planes, length, most, place, sources))


def known(tensor: Tensor) -> Known | None:
    """What was attached to exactly the memory of `tensor`, if anything; it may be outdated."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse, or wrapped by torch.func
        return None
    found: Known | None = getattr(storage, _ATTRIBUTE, None)
    if found is None or found.place != (tensor.storage_offset(), tensor.numel()):
        return None
    return found


def source_of(tensor: Tensor, found: Known) -> Source | None:
    """Where the gradient of `tensor` is needed, if it is registered in `found` and was not written to."""
    if not tensor.requires_grad or tensor.grad_fn is None:
        return None
    for source in found.sources:
        if source.tensor() is tensor:
            unchanged = source.version == tensor._version and source.strides == tensor.stride()
            return source if unchanged else None
    return None


def pass_on(tensor: Tensor, view: Tensor) -> Tensor:
    """Registers `view`, a reshaped `tensor`, if it is all of its memory; returns `view`."""
    if torch.compiler.is_compiling() or type(view) is not Tensor or not view.requires_grad:
        return view
    found = known(tensor)
    source = None if found is None else source_of(tensor, found)
    if found is None or source is None or known(view) is not found:
        return view
    alive = tuple(each for each in found.sources if each.tensor() is not None)
    sources = *alive, _source(view, source.mask, source.observers)
    setattr(view.untyped_storage(), _ATTRIBUTE, found._replace(sources=sources))
    return view


def _source(tensor: Tensor, mask: Tensor | None, observers: Observers) -> Source:
    own = ref(tensor), ref(torch_internals.hooks_of(tensor))
    return Source(ref(tensor), tensor._version, tensor.stride(), mask, (*observers, own))
