"""Metadata of tensors that a spiking layer emits: where the layer needs the tensor's gradient.

This is the only mechanism that tells a layer where to compute the gradient of its input. The metadata is
attached to the tensor's storage: the neurons at which the emitting layer needs its gradient, and the
observers of that gradient. It is valid only for registered tensor objects: the layer's output, and views that
hibana makes of it. The gradient of any other view is computed everywhere. Nothing is recorded about the
tensor's numbers, since a write through ``.data``, NumPy or DLPack leaves no trace.
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
    mask: Tensor
    """Bits ``[pieces, bytes]`` in memory order, set where the gradient is needed."""
    is_spikes: bool
    """Whether the mask is set exactly where the tensor had spikes when it was emitted."""
    observers: Observers


class SpikeMetadata(NamedTuple):
    """What is known about one range of a storage; a piece is a row of bits, in whole bytes."""

    length: int
    """Numbers per piece."""
    extent: tuple[int | torch.SymInt, int]
    """The range's offset in the storage and its length, in numbers."""
    regions: tuple[GradientRegion, ...]


def attach(
    tensor: Tensor, length: int, mask: Tensor, observers: Observers = (), *, is_spikes: bool = False
) -> None:
    """Attaches the region in which the gradient of a float32 `tensor` is needed.

    Args:
        tensor: its memory range gets the metadata, and the object itself the gradient region.
        length: the numbers in a piece (a row of bits).
        mask: bits ``[pieces, bytes]`` in memory order, set where the gradient is needed.
        observers: earlier tensors that also see the gradient.
        is_spikes: whether the mask is set exactly where `tensor` has spikes.
    """
    extent = tensor.storage_offset(), tensor.numel()
    metadata = SpikeMetadata(length, extent, (_region(tensor, mask, is_spikes, observers),))
    setattr(tensor.untyped_storage(), _ATTRIBUTE, metadata)


def metadata_of(tensor: Tensor) -> SpikeMetadata | None:
    """The metadata attached to exactly the memory of `tensor`; None without any."""
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
    regions = *alive, _region(view, region.mask, region.is_spikes, region.observers)
    setattr(view.untyped_storage(), _ATTRIBUTE, metadata._replace(regions=regions))
    return view


def _region(tensor: Tensor, mask: Tensor, is_spikes: bool, observers: Observers) -> GradientRegion:
    """A record of where the gradient of `tensor` is needed, and of all tensors whose hooks see it."""
    observer = ref(tensor), ref(torch_internals.hooks_of(tensor))
    all_observers = *observers, observer
    return GradientRegion(ref(tensor), tensor._version, tensor.stride(), mask, is_spikes, all_observers)
