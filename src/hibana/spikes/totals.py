"""``hb.events.total``: the sum of all spikes, counted in their bits, with a scalar gradient."""

from typing import Any

import torch
from torch import Tensor

from hibana.compiler.derivatives import add_scalar_gradient, applied, are_batched, takes_scalar_gradient
from hibana.spikes.checks import plain
from hibana.spikes.layer import learns
from hibana.spikes.provenance import Provenance, lookup, probe

__all__ = ["total"]


def total(values: Tensor) -> Tensor:
    """``values.sum()``, for penalties on activity: of spikes it is counted in their bits.

        y = sum_i x_i,   dL/dx_i = dL/dy

    The gradient is one number for all spikes. It is not expanded in memory: the spiking layer that emitted
    them adds it to its other gradients as it reads these, unless a hook observes them. For any other tensor
    this is torch's sum. Exact up to 2^24 spikes, and rounded once above.

    Args:
        values: of any shape; spikes ``[T, batch, ...]``.

    >>> import torch, hibana as hb
    >>> spikes = hb.IF()(torch.ones(4, 1, 2, requires_grad=True))
    >>> total(spikes) / spikes.numel()
    tensor(0.5000, grad_fn=<DivBackward0>)
    """
    if torch.compiler.is_compiling() or not plain(values):
        return values.sum()
    under = lookup(values)
    if under is None or under.spikes is None:
        return values.sum()
    if not learns(values):
        return _counted(under)
    found: Tensor = _apply(values, probe(), under)
    return found


def _counted(under: Provenance) -> Tensor:
    return torch.tensor(float(under.ones), dtype=torch.float32, device="cpu")


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, leaf: Tensor, under: Provenance) -> Tensor:
        ctx.shape, ctx.below = values.shape, under
        return _counted(under)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        node, _ = ctx.next_functions[0]
        once = not (torch.is_grad_enabled() or are_batched([grad]))
        if once and takes_scalar_gradient(node) and ctx.below.has_no_observer():
            add_scalar_gradient(node, grad.resolve_neg())  # its memory is what a kernel reads
            return None, None, None
        return grad.expand(ctx.shape), None, None


_apply = applied(_Total)
