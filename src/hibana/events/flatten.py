"""``hb.events.Flatten``: a change of the order in memory that passes spikes on as spikes."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hibana.events.checks import plain
from hibana.events.support import Support, passed_on, support_of
from hibana.loop.leaf import as_leaf, is_name

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
        if (
            not torch.compiler.is_compiling()
            and plain(input)
            and not input.is_contiguous()
            and input.requires_grad
            and torch.is_grad_enabled()
        ):
            flat = _flattened(input, self.start_dim, self.end_dim)
            if flat is not None:
                return flat
        return super().forward(input)


def _flattened(spikes: Tensor, start: int, end: int) -> Tensor | None:
    """`spikes` with dimensions joined where that changes their order in memory, their support known.

    None if the support is not known, or not the spikes themselves, or nothing is copied.
    """
    below = support_of(spikes)
    if below is None or below.bits is not None:
        return None
    copied = spikes.detach().flatten(start, end)
    if copied.data_ptr() == spikes.data_ptr():
        return None  # a view, through which a layer sees anyhow
    apply: Any = _Flatten.apply  # torch leaves it without types
    flat: Tensor = apply(spikes, copied, passed_on(copied, below.length, below.watched))
    return flat


class _Flatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, copied: Tensor, support: Support) -> Tensor:
        ctx.shape, ctx.support = spikes.shape, support
        return copied.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.reshape(ctx.shape), None, None
