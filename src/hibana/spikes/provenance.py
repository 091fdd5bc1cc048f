"""Provenance of spikes: a tensor's numbers as bits, and where its producer needs the gradient.

Both are attached to the tensor's storage (:mod:`hibana.compiler.spike_metadata`). Anything uncertain is
treated as dense: bits are compared with the numbers at each lookup, and the gradient is computed everywhere
unless it is certain that only the layer that emitted the spikes receives it. A hook put on a node of autograd
itself (``Node.register_prehook``) is not noticed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import Observers, gradient_region_of, metadata_of, register_view
from hibana.runtime import torch_internals
from hibana.spikes.bits import agree

__all__ = ["Provenance", "fills_memory", "lookup", "probe", "register_view"]


class Provenance(NamedTuple):
    """What is known of a tensor."""

    length: int
    """Elements per piece of the bits, in memory order."""
    planes: Tensor | None = None
    """The numbers, ``[planes, pieces, bytes]``: one plane for spikes, several for sums (:class:`Planes`)."""
    most: int = 1
    """The largest possible number."""
    ones: int = 0
    """Number of set bits in the planes."""
    mask: Tensor | None = None
    """Where the gradient is needed, ``[pieces, bytes]``; None: where the spikes are."""
    observers: Observers | None = None
    """None if the gradient is needed everywhere."""

    @property
    def spikes(self) -> Tensor | None:
        """The bits of the tensor, if it is known to be spikes."""
        return self.planes[0] if self.planes is not None and self.planes.shape[0] == 1 else None

    @property
    def explicit_mask(self) -> Tensor | None:
        """The bits of where the gradient is needed; None if it is needed everywhere."""
        if self.observers is None:
            return None
        return self.spikes if self.mask is None else self.mask

    def rows(self, bits: Tensor, length: int) -> Tensor | None:
        """`bits`, ``[..., pieces, bytes]``, viewed as ``[..., rows, words]``, `length` elements a row.

        None if rows do not begin at a word of 64 bits.
        """
        words = -(-length // 64)
        whole_words = length % 64 == 0 and self.length % 64 == 0
        if whole_words or (length == self.length and bits.shape[-1] == 8 * words):
            return bits.view(torch.int64).view(*bits.shape[:-2], -1, words)
        return None

    def has_no_observer(self) -> bool:
        """Whether, in the backward that runs now, only the producer's node receives this gradient."""
        if self.observers is None:
            return False
        for tensor_ref, hooks_ref in self.observers:
            tensor = tensor_ref()
            if hooks_ref() or (tensor is not None and tensor.retains_grad):
                return False
        return bool(torch_internals.will_execute(_PROBE_NODE))


_PROBE = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
_PROBE_NODE = torch.autograd.graph.get_gradient_edge(_PROBE).node
"""The node that accumulates the probe's gradient."""


def probe() -> Tensor:
    """A leaf that never gets a gradient, passed to a layer's node as one more input.

    The engine executes its node in a plain ``backward()`` only: where gradients of chosen tensors are asked
    for (``torch.autograd.grad``, ``inputs=``), any of them may be one that would be left out.
    """
    return _PROBE


def lookup(tensor: Tensor) -> Provenance | None:
    """What is known of `tensor`; None if nothing is."""
    found = metadata_of(tensor)
    if found is None or not fills_memory(tensor):
        return None
    ones = None if found.planes is None else agree(tensor, found.planes)
    source = gradient_region_of(tensor, found)
    if source is not None and source.mask is None and ones is None:
        source = None  # the mask is the spikes, which were overwritten
    if source is None and ones is None:
        return None
    mask, observers = (None, None) if source is None else (source.mask, source.observers)
    if ones is None:
        return Provenance(found.length, mask=mask, observers=observers)
    return Provenance(found.length, found.planes, found.max_value, ones, mask, observers)


def fills_memory(tensor: Tensor) -> bool:
    """Whether `tensor` fills its memory without gaps, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    size = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent != 1:
            if stride != size:
                return False
            size *= extent
    return True
