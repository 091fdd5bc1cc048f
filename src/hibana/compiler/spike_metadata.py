"""Metadata of tensors that hold spikes, attached to their storage: bits, and the region of the gradient.

This is the only mechanism that tells a layer that its input holds spikes. Both facts are optional:

- the numbers as bit planes: plane k contains bit k of each number, as packed bits. They are valid for every
tensor that covers exactly this memory. Readers must
  compare them with the numbers, since a write through ``.data``, NumPy or DLPack leaves no trace;
- the neurons at which the layer that emitted the tensor needs its gradient, and the observers of that
  gradient. They are valid only for registered tensor objects: the layer's output, and views that hibana makes
  of it. The gradient of any other view is computed everywhere.
"""

from collections import OrderedDict
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from hibana.runtime import torch_internals

__all__ = [
    "GradientRegion",
    "Observers",
    "SpikeMetadata",
    "attach",
    "gradient_region_of",
    "metadata_of",
    "register_view",
]

Observers = tuple[tuple["ref[Tensor]", "ref[OrderedDict[int, Any]]"], ...]
"""Tensors between producer and consumer, each with the dictionary of its gradient hooks."""
_ATTRIBUTE = "_hibana_known"


class GradientRegion(NamedTuple):
    """The elements of one tensor object at which its gradient is needed."""

    tensor: "ref[Tensor]"
    version: int
    """The tensor's version counter; after an in-place write the gradient is needed everywhere."""
    strides: tuple[int, ...]
    mask: Tensor | None
    """Bits ``[pieces, bytes]`` in memory order, set where the surrogate's derivative can be non-zero. None
    means that the spikes are the mask."""
    observers: Observers


class SpikeMetadata(NamedTuple):
    """What is known about the numbers in one range of a storage; a piece is a row of bits, in whole bytes."""

    planes: Tensor | None
    """The numbers as bit planes ``[planes, pieces, bytes]`` in memory order; spikes have one plane."""
    length: int
    """Numbers per piece."""
    max_value: int
    """The largest possible number."""
    extent: tuple[int | torch.SymInt, int]
    """The range's offset in the storage and its length, in numbers."""
    regions: tuple[GradientRegion, ...] = ()


def attach(
    tensor: Tensor,
    planes: Tensor | None,
    length: int,
    max_value: int = 1,
    *,
    mask: Tensor | None = None,
    observers: Observers | None = None,
) -> None:
    """Attaches metadata to the memory of a float32 `tensor`.

    Args:
        tensor: its memory range gets the metadata, and the object itself a gradient region.
        planes: the numbers as bit planes ``[planes, pieces, bytes]`` in memory order, one plane for spikes.
        length: the numbers in a piece (a row of bits).
        max_value: the largest possible number.
        mask: bits ``[pieces, bytes]``, set where the gradient of `tensor` is needed.
        observers: earlier tensors that also see the gradient; None: the gradient is needed everywhere.
    """
    regions = () if observers is None else (_region(tensor, mask, observers),)
    extent = tensor.storage_offset(), tensor.numel()
    setattr(tensor.untyped_storage(), _ATTRIBUTE, SpikeMetadata(planes, length, max_value, extent, regions))


def metadata_of(tensor: Tensor) -> SpikeMetadata | None:
    """The metadata attached to exactly the memory of `tensor`, which may be outdated; None without any."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse, or wrapped by torch.func
        return None
    metadata: SpikeMetadata | None = getattr(storage, _ATTRIBUTE, None)
    if metadata is None or metadata.extent != (tensor.storage_offset(), tensor.numel()):
        return None
    return metadata


def gradient_region_of(tensor: Tensor, metadata: SpikeMetadata) -> GradientRegion | None:
    """Where the gradient of `tensor` is needed; None, for everywhere, if that is unknown.

    It is unknown if `tensor` is not registered in `metadata` or was written to in place.
    """
    if not tensor.requires_grad or tensor.grad_fn is None:
        return None
    for region in metadata.regions:
        if region.tensor() is tensor:
            unchanged = region.version == tensor._version and region.strides == tensor.stride()
            return region if unchanged else None
    return None


def register_view(tensor: Tensor, view: Tensor) -> Tensor:
    """Lets layers that read `view`, a reshaped `tensor`, restrict its gradient as `tensor`'s; returns `view`.

    A view that covers only a part of the memory is not registered.
    """
    if torch.compiler.is_compiling() or type(view) is not Tensor or not view.requires_grad:
        return view
    metadata = metadata_of(tensor)
    region = None if metadata is None else gradient_region_of(tensor, metadata)
    if metadata is None or region is None or metadata_of(view) is not metadata:
        return view
    alive = tuple(other for other in metadata.regions if other.tensor() is not None)
    regions = *alive, _region(view, region.mask, region.observers)
    setattr(view.untyped_storage(), _ATTRIBUTE, metadata._replace(regions=regions))
    return view


def _region(tensor: Tensor, mask: Tensor | None, observers: Observers) -> GradientRegion:
    """A record of where the gradient of `tensor` is needed, and of all tensors whose hooks see it."""
    observer = ref(tensor), ref(torch_internals.hooks_of(tensor))
    return GradientRegion(ref(tensor), tensor._version, tensor.stride(), mask, (*observers, observer))
