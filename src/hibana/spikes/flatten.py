"""``hb.events.Flatten``: a copy in another memory order that keeps the provenance of spikes."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hibana.compiler.ambient import as_leaf, is_name
from hibana.compiler.attached import attach
from hibana.spikes.bits import bits_of
from hibana.spikes.checks import plain
from hibana.spikes.layer import learns
from hibana.spikes.provenance import Provenance, lookup

__all__ = ["Flatten"]


class Flatten(nn.Flatten):
    """``torch.nn.Flatten``, over which a layer still knows what spiking layer stands below it.

    >>> import torch, hibana as hb
    >>> hb.events.Flatten()(torch.ones(5, 2, 3)).shape
    torch.Size([5, 6])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Flatten's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        if not torch.compiler.is_compiling() and plain(input) and not input.is_contiguous():
            flat = _flattened(input, self.start_dim, self.end_dim)
            if flat is not None:
                return flat
        return super().forward(input)


def _flattened(spikes: Tensor, start: int, end: int) -> Tensor | None:
    """Flattened `spikes` with their bits attached, where flattening copies them; else None."""
    under = lookup(spikes)
    if under is None or under.spikes is None or not spikes.numel():
        return None
    copied = spikes.detach().flatten(start, end)
    if copied.untyped_storage() is spikes.untyped_storage():
        return None  # a view, through which a layer sees anyhow
    length = copied.shape[-1]
    attach(copied, bits_of(copied.view(-1, length))[0].view(torch.uint8)[None], length)
    if not learns(spikes):
        return copied
    exact = under.bits is None and under.observers is not None
    support = Provenance(None, length, under.observers) if exact else None
    apply: Any = _Flatten.apply  # torch leaves it without types
    flat: Tensor = apply(spikes, copied, support)
    return flat


class _Flatten(torch.autograd.Function):
    """The node of a flattening that copies: its gradient is reshaped; it carries the spikes' provenance."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, copied: Tensor, support: Provenance | None) -> Tensor:
        """`copied`, the flattened copy of `spikes`; `support` is what :func:`lookup` finds at the node."""
        ctx.shape, ctx.support = spikes.shape, support
        return copied.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.reshape(ctx.shape), None, None
