"""Provenance of spikes: the mask of elements at which the layer that emitted a tensor needs its gradient.

The layer attaches the mask to the tensor's storage (:mod:`hibana.compiler.spike_metadata`). Anything
uncertain is treated as dense: the gradient is computed everywhere unless only the emitting layer can receive
it. A hook on a node of autograd (``Node.register_prehook``) is not detected.
"""

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import GradientRegion, region_of, register_view
from hibana.runtime import torch_internals
from hibana.spikes.bits import pack_bits

__all__ = ["Provenance", "lookup", "register_view", "probe"]


class Provenance(GradientRegion):
    """Where the gradient of a tensor is needed."""

    def rows(self, length: int) -> Tensor | None:
        """The mask ``[rows, words]`` of rows of `length` elements; None if rows do not begin at a word."""
        words = -(-length // 64)
        fills_words = length % 64 == 0 and self.length % 64 == 0
        if fills_words or (length == self.length and self.mask.shape[-1] == 8 * words):
            return self.mask.view(torch.int64).view(-1, words)
        return None

    def is_mask_of(self, tensor: Tensor) -> bool:
        """Whether the mask is set exactly where `tensor` has spikes; False after a write to its memory."""
        if not self.is_spikes or not tensor.numel():
            return False
        rows = tensor.detach().as_strided((len(self.mask), self.length), (self.length, 1))
        bits, density = pack_bits(rows)
        return density is not None and torch.equal(bits.view(torch.uint8)[:, : self.mask.shape[1]], self.mask)

    def has_no_observer(self) -> bool:
        """Whether only the producer's node receives this gradient in the backward that is running."""
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
    """Where the gradient of `tensor` is needed; None, for everywhere, if no layer has attached a mask."""
    region = region_of(tensor)
    return None if region is None else Provenance(*region)
