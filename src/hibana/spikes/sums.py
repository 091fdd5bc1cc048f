"""``hb.events.add``: a sum of spikes that keeps the gradient masks of both summands."""

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import attach
from hibana.spikes.checks import kernels_accept
from hibana.spikes.layer import needs_gradient
from hibana.spikes.provenance import Provenance, lookup
from hibana.spikes.simd.lists import WORD

__all__ = ["add"]


def add(one: Tensor, other: Tensor) -> Tensor:
    """``one + other``, with the gradient masks of both, for the layer that reads the sum.

        y = a + b,   dL/da = dL/db = dL/dy where either surrogate's derivative is not zero

    For residual connections (SEW-ResNet's ADD). The sum of two spikes is 0, 1 or 2; sums of sums are larger.
    :class:`hibana.Linear` and :class:`hibana.Conv2d` add rows of weights for such numbers as they do for
    spikes. ``one + other`` has the same values and gradients, but no masks.

    Source: Fang et al. (2021), *Deep residual learning in spiking neural networks*.

    >>> import torch
    >>> add(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0]))
    tensor([0., 1., 2.])
    """
    total = one + other
    if (
        torch.compiler.is_compiling()
        or not kernels_accept(one, other, total)
        or one.shape != other.shape
        or not one.stride() == other.stride() == total.stride()
    ):
        return total
    if needs_gradient(one, other):
        _attach_union(total, [lookup(tensor) for tensor in (one, other) if tensor.requires_grad])
    return total


def _attach_union(total: Tensor, summands: list[Provenance | None]) -> None:
    """Attaches a mask to `total`, set where any summand needs its gradient, unless one needs all of it."""
    first, *others = summands
    if first is None:
        return
    mask, observers = first.mask, first.observers
    for other in others:
        if other is None or not _same_layout(first, other):
            return
        mask, observers = mask | other.mask.view(mask.shape), (*observers, *other.observers)
    attach(total, first.length, mask, observers)


def _same_layout(a: Provenance, b: Provenance) -> bool:
    """Whether bit k of both masks is the same element of their tensors, so that words can be combined.

    Bits are stored in pieces that end at full words, so pieces of another length move the later elements.
    """
    fills_words = a.length % WORD == 0 == b.length % WORD
    return fills_words or (a.length == b.length and a.mask.shape == b.mask.shape)
