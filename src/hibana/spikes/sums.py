"""``hb.events.add``: a sum of spikes that keeps the bits and gradient masks of both summands."""

import torch
from torch import Tensor

from hibana.compiler.spike_metadata import attach
from hibana.spikes.checks import kernels_accept
from hibana.spikes.layer import needs_gradient
from hibana.spikes.planes import MOST_PLANES
from hibana.spikes.provenance import Provenance, lookup
from hibana.spikes.simd.lists import WORD

__all__ = ["add"]


def add(one: Tensor, other: Tensor) -> Tensor:
    """``one + other``, with the bits and gradient masks of both, for the layer that reads the sum.

        y = a + b,   dL/da = dL/db = dL/dy where either surrogate's derivative is not zero

    For residual connections (SEW-ResNet's ADD). The sum of two spikes is 0, 1 or 2; sums of sums are larger.
    :class:`hibana.Linear` and :class:`hibana.Conv2d` add rows of weights for such numbers as they do for
    spikes. ``one + other`` has the same values and gradients, but neither bits nor masks.

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
    trained = [provenance for tensor, provenance in ((one, a), (other, b)) if tensor.requires_grad]
    union = _mask_union(trained) if needs_gradient(one, other) else None
    planes = None if a is None or b is None else _added_planes(a, b)
    if a is not None and b is not None and planes is not None:
        mask, observers = (None, None) if union is None else (union.mask, union.observers)
        attach(total, planes, a.length, a.max_value + b.max_value, mask=mask, observers=observers)
    elif union is not None:
        attach(total, None, union.length, mask=union.mask, observers=union.observers)
    return total


def _mask_union(summands: list[Provenance | None]) -> Provenance | None:
    """A provenance whose mask is set where any summand needs its gradient; None if one needs all of it."""
    first, *others = summands
    mask = None if first is None else first.explicit_mask
    if first is None or mask is None:
        return None
    observers = first.observers or ()
    for other in others:
        other_mask = None if other is None else other.explicit_mask
        if other is None or other_mask is None or not _same_layout(first, other, mask, other_mask):
            return None
        mask, observers = mask | other_mask.view(mask.shape), (*observers, *(other.observers or ()))
    return Provenance(first.length, mask=mask, observers=observers)


def _same_layout(a: Provenance, b: Provenance, a_bits: Tensor, b_bits: Tensor) -> bool:
    """Whether bit k of both is the same element of their tensors, so that words can be combined.

    Bits are stored in pieces that end at full words, so pieces of another length move the later elements.
    """
    fills_words = a.length % WORD == 0 == b.length % WORD
    return fills_words or (a.length == b.length and a_bits.shape[-2:] == b_bits.shape[-2:])


def _added_planes(a: Provenance, b: Provenance) -> Tensor | None:
    """Adds tensors that are stored as bit planes (plane k has bit k of each number), by a ripple-carry adder.

    None if one has no bit planes, their layouts differ, or the sums would need too many planes.
    """
    if a.planes is None or b.planes is None or a.max_value + b.max_value >= 1 << MOST_PLANES:
        return None
    if not _same_layout(a, b, a.planes, b.planes):
        return None
    summands = a.planes, b.planes.view(-1, *a.planes.shape[1:])
    carry, sums = torch.zeros_like(a.planes[0]), []
    for k in range((a.max_value + b.max_value).bit_length()):
        bit, next_carry = carry, torch.zeros_like(carry)
        for planes in summands:
            if k < len(planes):
                bit, next_carry = bit ^ planes[k], next_carry | (bit & planes[k])
        sums.append(bit)
        carry = next_carry
    return torch.stack(sums)
