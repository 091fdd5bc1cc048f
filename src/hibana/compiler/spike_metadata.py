"""Gradient regions of tensors that a spiking layer emits: where the layer needs the tensor's gradient.

This is the only mechanism that tells a layer where to compute the gradient of its input. A region is attached
to the tensor's storage: the neurons at which the emitting layer needs its gradient, and the observers of that
gradient. It is valid only for registered tensor objects: the layer's output, and views that hibana makes of
it. The gradient of any other view is computed everywhere. Nothing is recorded about the tensor's numbers,
since a write through ``.data``, NumPy or DLPack leaves no trace.
"""

from collections import OrderedDict
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from hibana.runtime import torch_internals

Observers = tuple[tuple["ref[Tensor]", "ref[OrderedDict[int, Any]]"], ...]
"""Tensors between producer and consumer, each with the dictionary of its gradient hooks."""
_ATTRIBUTE = "_hibana_known"
"""The attribute of a storage with the regions of its tensors."""


class GradientRegion(NamedTuple):
    """The elements of one tensor object at which its gradient is needed."""

    tensor: "ref[Tensor]"
    version: int
    """The tensor's version counter; after an in-place write the gradient is needed everywhere."""
    strides: tuple[int, ...]
    length: int
    """Elements of each piece of the mask; pieces are in memory order."""
    mask: Tensor
    """Bits ``[pieces, bytes]``, set where the gradient is needed."""
    is_spikes: bool
    """Whether the mask is set exactly where the tensor had spikes when it was emitted."""
    observers: Observers
    """Tensors whose hooks would see a restricted gradient."""


def attach(
    tensor: Tensor, length: int, mask: Tensor, observers: Observers = (), *, is_spikes: bool = False
) -> None:
    """Attaches the region where the gradient of a float32 `tensor` is needed.

    Args:
        tensor: the tensor object, which fills its memory.
        length: the numbers in a piece (a row of bits, in whole bytes).
        mask: bits ``[pieces, bytes]`` in memory order, set where the gradient is needed.
        observers: earlier tensors that also see the gradient.
        is_spikes: whether the mask is set exactly where `tensor` has spikes.
    """
    region = _region(tensor, length, mask, is_spikes, observers)
    setattr(tensor.untyped_storage(), _ATTRIBUTE, (region,))


def region_of(tensor: Tensor) -> GradientRegion | None:
    """Where the gradient of `tensor` is needed; None, for everywhere, if that is unknown.

    It is unknown if `tensor` is not registered or was written to in place.
    """
    if not tensor.requires_grad or tensor.grad_fn is None:
        return None
    for region in _attached(tensor):
        if region.tensor() is tensor:
            unchanged = region.version == tensor._version and region.strides == tensor.stride()
            return region if unchanged else None
    return None


def register_view(tensor: Tensor, view: Tensor) -> Tensor:
    """Lets layers that read `view`, a reshaped `tensor`, restrict its gradient as `tensor`'s; returns `view`.

    A copy is not registered, nor is a view that covers only a part of the memory.
    """
    if type(view) is not Tensor or not view.requires_grad or torch.compiler.is_compiling():
        return view
    region, attached = region_of(tensor), _attached(tensor)
    if region is None or view.numel() != tensor.numel() or _attached(view) is not attached:
        return view
    alive = (other for other in attached if other.tensor() is not None)
    regions = *alive, _region(view, region.length, region.mask, region.is_spikes, region.observers)
    setattr(view.untyped_storage(), _ATTRIBUTE, regions)
    return view


def _attached(tensor: Tensor) -> tuple[GradientRegion, ...]:
    """The regions that are attached to the storage of `tensor`, of any tensors."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse, or wrapped by torch.func
        return ()
    attached: tuple[GradientRegion, ...] = getattr(storage, _ATTRIBUTE, ())
    return attached


def _region(
    tensor: Tensor, length: int, mask: Tensor, is_spikes: bool, observers: Observers
) -> GradientRegion:
    """A record of where the gradient of `tensor` is needed, and of all tensors whose hooks see it."""
    observer = ref(tensor), ref(torch_internals.hooks_of(tensor))
    all_observers = *observers, observer
    return GradientRegion(
        ref(tensor), tensor._version, tensor.stride(), length, mask, is_spikes, all_observers
    )
