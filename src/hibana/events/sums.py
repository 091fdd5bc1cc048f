"""``hb.events.add``: a sum of spikes, over which a layer still knows what spiking layers stand below it."""

import torch
from torch import Tensor

from hibana.events.bits import bits_of
from hibana.events.checks import plain
from hibana.events.support import Support, announce_support, support_of

__all__ = ["add"]


def add(one: Tensor, other: Tensor) -> Tensor:
    """``one + other``, of which a layer above knows where both spiking layers below can use a gradient.

        y = a + b,   dL/da = dL/db = dL/dy where either surrogate's derivative is not zero

    For residual connections (SEW-ResNet's ADD). The sum of spikes is 0, 1 or 2, of sums more, and
    :class:`hibana.Linear` and :class:`hibana.Conv2d` add rows of weights for it as they do for spikes.
    ``one + other`` is the same sum with the same gradients, the one below a layer computed everywhere.

    Source: Fang et al. (2021), *Deep residual learning in spiking neural networks*.

    >>> import torch
    >>> add(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0]))
    tensor([0., 1., 2.])
    """
    total = one + other
    if (
        not torch.compiler.is_compiling()
        and type(one) is type(other) is type(total) is Tensor
        and total.requires_grad
        and plain(one, other)
        and one.shape == other.shape
        and one.stride() == other.stride() == total.stride()
    ):
        support = _support(one, other)
        if support is not None:
            announce_support(total, support)
    return total


def _support(one: Tensor, other: Tensor) -> Support | None:
    """Where the gradient of the sum can matter: where it can in a summand that takes one."""
    if not other.requires_grad:
        return _explicit(one)
    if not one.requires_grad:
        return _explicit(other)
    a, b = _explicit(one), _explicit(other)
    if a is None or b is None:
        return None
    assert a.bits is not None
    assert b.bits is not None
    watched = (*a.watched, *b.watched)
    if a.length == b.length and a.bits.shape == b.bits.shape:
        return Support(a.bits | b.bits, a.length, watched)
    if a.length % 64 == 0 and b.length % 64 == 0:  # no bits but those of numbers, in the order of memory
        return Support(a.bits | b.bits.view(a.bits.shape), a.length, watched)
    return None


def _explicit(spikes: Tensor) -> Support | None:
    """What is known of the layer below `spikes`, with the bits of its support."""
    below = support_of(spikes)
    if below is None or below.bits is not None:
        return below
    bits = below.spikes
    if bits is None:
        rows = spikes.detach().as_strided((spikes.numel() // below.length, below.length), (below.length, 1))
        bits = bits_of(rows)[0].view(torch.uint8)
    return Support(bits, below.length, below.watched)
