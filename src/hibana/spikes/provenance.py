"""Provenance of spikes: a tensor's numbers as bits, and the mask of elements whose gradient is needed.

The layer that emits spikes attaches both to the tensor's storage (:mod:`hibana.compiler.spike_metadata`).
Anything uncertain is treated as dense: bits are compared with the numbers at each lookup, and the gradient is
computed everywhere unless only the emitting layer can receive it. A hook on a node of autograd
(``Node.register_prehook``) is not detected.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import Observers, gradient_region_of, metadata_of, register_view
from hibana.runtime import torch_internals
from hibana.spikes.bits import matching_ones

__all__ = ["Provenance", "fills_memory", "lookup", "register_view", "probe"]


class Provenance(NamedTuple):
    """What is known about a tensor of spikes or sums of spikes: bits, and where its gradient is needed."""

    length: int
    """Elements of each piece of the bits; pieces are in memory order."""
    planes: Tensor | None = None
    """The numbers, ``[planes, pieces, bytes]``: one plane for spikes, several for sums (:class:`Planes`)."""
    max_value: int = 1
    """Upper bound of the numbers."""
    ones: int = 0
    """Number of set bits in the planes."""
    mask: Tensor | None = None
    """``[pieces, bytes]``, set where the gradient is needed; None if that is where the spikes are."""
    observers: Observers | None = None
    """Tensors whose hooks would see a restricted gradient; None if the gradient is needed everywhere."""

    @property
    def spikes(self) -> Tensor | None:
        """The bits ``[pieces, bytes]`` of a tensor of spikes; None for other tensors."""
        return self.planes[0] if self.planes is not None and self.planes.shape[0] == 1 else None

    @property
    def explicit_mask(self) -> Tensor | None:
        """``[pieces, bytes]``, set where the gradient is needed; None if it is needed everywhere."""
        if self.observers is None:
            return None
        return self.spikes if self.mask is None else self.mask

    def rows(self, bits: Tensor, length: int) -> Tensor | None:
        """`bits`, ``[..., pieces, bytes]``, viewed as ``[..., rows, words]`` with `length` elements a row.

        None if rows do not begin at a word of 64 bits.
        """
        words = -(-length // 64)
        fills_words = length % 64 == 0 and self.length % 64 == 0
        if fills_words or (length == self.length and bits.shape[-1] == 8 * words):
            return bits.view(torch.int64).view(*bits.shape[:-2], -1, words)
        return None

    def has_no_observer(self) -> bool:
        """Whether only the producer's node receives this gradient in the backward that is running."""
        if self.observers is None:
            return False
        for tensor_ref, hooks_ref in self.observers:
            tensor = tensor_ref()
            if hooks_ref() or (tensor is not None and tensor.retains_grad):
                return False
        return bool(torch_internals.will_execute(_PROBE_NODE))


_PROBE = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
_PROBE_NODE = torch.autograd.graph.get_gradient_edge(_PROBE).node
"""The node that would accumulate the probe's gradient."""


def probe() -> Tensor:
    """A leaf without a gradient: an extra input of a layer's node, to detect a ``backward()`` of all leaves.

    Autograd executes the leaf's node only in ``backward()`` without ``inputs``. With ``inputs``, and in
    ``torch.autograd.grad``, the caller may read the gradient of any tensor, so no gradient may be restricted.
    """
    return _PROBE


def lookup(tensor: Tensor) -> Provenance | None:
    """The bits and the gradient mask that a layer attached to `tensor`, or None if none are valid.

    Bits that differ from the numbers, since these were overwritten, are omitted.
    """
    attached = metadata_of(tensor)
    if attached is None or not fills_memory(tensor):
        return None
    ones = None if attached.planes is None else matching_ones(tensor, attached.planes)
    source = gradient_region_of(tensor, attached)
    if source is not None and source.mask is None and ones is None:
        source = None  # the mask is the spikes, which were overwritten
    if source is None and ones is None:
        return None
    mask, observers = (None, None) if source is None else (source.mask, source.observers)
    if ones is None:
        return Provenance(attached.length, mask=mask, observers=observers)
    return Provenance(attached.length, attached.planes, attached.max_value, ones, mask, observers)


def fills_memory(tensor: Tensor) -> bool:
    """Whether `tensor` fills its memory without gaps, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    size = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent != 1:
            if stride != size:
                return False
            size *= extent
    return True
