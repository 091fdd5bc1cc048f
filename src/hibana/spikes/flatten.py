"""``hb.events.Flatten``: a flattening, or a copy in another memory order, that keeps the bits of spikes."""

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
    """``torch.nn.Flatten``, over which a layer still knows what spiking layer stands below it.

    >>> import torch, hibana as hb
    >>> hb.events.Flatten()(torch.ones(5, 2, 3)).shape
    torch.Size([5, 6])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Flatten's name for it
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        flat = super().forward(input)
        if torch.compiler.is_compiling() or not kernels_accept(input):
            return flat
        if flat.data_ptr() == input.data_ptr():
            return register_view(input, flat)
        return _attach_copy(input, flat)


def _attach_copy(spikes: Tensor, copied: Tensor) -> Tensor:
    """Attaches to `copied`, flattened `spikes`, their bits; returns it.

    Nothing is attached if `spikes` are not known to be spikes. Where their gradient is needed where they
    fired, that of `copied` is too; other masks are not copied.
    """
    below = lookup(spikes)
    if below is not None and below.spikes is not None and copied.numel():
        length = copied.shape[-1]
        bits = pack_bits(copied.detach().view(-1, length))[0].view(torch.uint8)[None]
        observers = below.observers if below.mask is None and copied.requires_grad else None
        attach(copied, bits, length, observers=observers)
    return copied
