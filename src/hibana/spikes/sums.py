"""``hb.events.add``: a sum of spikes that keeps the provenance of both."""

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import attach
from hibana.spikes.checks import kernels_accept
from hibana.spikes.layer import needs_gradient
from hibana.spikes.planes import MOST
from hibana.spikes.provenance import Provenance, lookup
from hibana.spikes.simd.lists import WORD

__all__ = ["add"]


def add(one: Tensor, other: Tensor) -> Tensor:
    """``one + other`` that keeps what is known of both summands for the layer that reads the sum.

        y = a + b,   dL/da = dL/db = dL/dy where either surrogate's derivative is not zero

    For residual connections (SEW-ResNet's ADD). The sum of spikes is 0, 1 or 2, of sums more, and
    :class:`hibana.Linear` and :class:`hibana.Conv2d` add rows of weights for it as they do for spikes.
    ``one + other`` is the same sum with the same gradients; only the masks and bits are lost on it.

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
    a, b = lookup(one), lookup(other)
    below = [known for each, known in ((one, a), (other, b)) if each.requires_grad]
    mask = _union(below) if needs_gradient(one, other) else None
    planes = None if a is None or b is None else _added(a, b)
    if a is not None and b is not None and planes is not None:
        bits, observers = (None, None) if mask is None else (mask.mask, mask.observers)
        attach(total, planes, a.length, a.most + b.most, mask=bits, observers=observers)
    elif mask is not None:
        attach(total, None, mask.length, mask=mask.mask, observers=mask.observers)
    return total


def _union(summands: list[Provenance | None]) -> Provenance | None:
    """Where the gradient of a sum is needed: where that of any of the `summands` is; None: everywhere."""
    first, *rest = summands
    mask = None if first is None else first.explicit_mask
    if first is None or mask is None:
        return None
    observers = first.observers or ()
    for other in rest:
        more = None if other is None else other.explicit_mask
        if other is None or more is None or not _alike(first, other, mask, more):
            return None
        mask, observers = mask | more.view(mask.shape), (*observers, *(other.observers or ()))
    return Provenance(first.length, mask=mask, observers=observers)


def _alike(a: Provenance, b: Provenance, bits: Tensor, others: Tensor) -> bool:
    """Whether both bits are of the same numbers: in pieces of whole words, or of equal length."""
    whole = a.length % WORD == 0 == b.length % WORD
    return whole or (a.length == b.length and bits.shape[-2:] == others.shape[-2:])


def _added(a: Provenance, b: Provenance) -> Tensor | None:
    """The planes of a sum, by a ripple-carry adder over bytes of bits; None if they cannot be added."""
    if a.planes is None or b.planes is None or a.most + b.most >= 1 << MOST:
        return None
    if not _alike(a, b, a.planes, b.planes):
        return None
    summands = a.planes, b.planes.view(-1, *a.planes.shape[1:])
    carry, found = torch.zeros_like(a.planes[0]), []
    for k in range((a.most + b.most).bit_length()):
        bit, carried = carry, torch.zeros_like(carry)
        for planes in summands:
            if k < len(planes):
                bit, carried = bit ^ planes[k], carried | (bit & planes[k])
        found.append(bit)
        carry = carried
    return torch.stack(found)
