"""``hb.events.Flatten``: ``torch.nn.Flatten`` whose result keeps the gradient mask of its input."""

from typing import cast

import torch
from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.spike_metadata import attach
from hibana.spikes.bits import pack_bits
from hibana.spikes.checks import kernels_accept
from hibana.spikes.provenance import lookup, register_view

__all__ = ["Flatten"]


class Flatten(nn.Flatten):
    """``torch.nn.Flatten`` whose result keeps the gradient mask of spikes, for the layer that reads it.

    >>> import torch, hibana as hb
    >>> hb.events.Flatten()(torch.ones(5, 2, 3)).shape
    torch.Size([5, 6])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Flatten's name for it
        """The flattened `input`; that of spikes has their gradient mask attached."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        flat = super().forward(input)
        if torch.compiler.is_compiling() or not kernels_accept(input):
            return flat
        if flat.data_ptr() == input.data_ptr():
            return register_view(input, flat)
        return _attach_copy(input, flat)


def _attach_copy(spikes: Tensor, copied: Tensor) -> Tensor:
    """Attaches a mask to the flattened copy `copied` of `spikes`, and returns it.

    If the gradient of `spikes` is needed only where they are 1, the same holds for `copied`. Any other mask
    is dropped: the gradient of `copied` is then needed everywhere.
    """
    provenance = lookup(spikes)
    if provenance is not None and copied.requires_grad and provenance.is_mask_of(spikes):
        length = copied.shape[-1]
        mask = pack_bits(copied.detach().view(-1, length))[0].view(torch.uint8)
        attach(copied, length, mask, provenance.observers, is_spikes=True)
    return copied
