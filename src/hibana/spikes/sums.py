"""``hb.events.add``: a sum of spikes that keeps the provenance of both."""

from typing import Any, cast

import torch
from torch import Tensor

from hibana.compiler.attached import attach
from hibana.compiler.derivatives import applied, are_batched
from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Longs, Value, kernel
from hibana.spikes.checks import plain
from hibana.spikes.layer import learns
from hibana.spikes.planes import MOST
from hibana.spikes.provenance import Provenance, attach_sum, fills_memory, lookup
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import VECTOR

__all__ = ["add"]

GRAIN = 512
"""Words of bits per thread, at least."""


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
    if (
        torch.compiler.is_compiling()
        or type(one) is not Tensor
        or type(other) is not Tensor
        or not plain(one, other)
        or one.shape != other.shape
        or one.stride() != other.stride()
    ):
        return one + other
    a, b = lookup(one), lookup(other)
    support = _support(one, other, a, b) if learns(one, other) else None
    if a is None or b is None or not _can_add(a, b):
        total = one + other
        if support is not None and total.stride() == one.stride():
            attach_sum(total, support)
        return total
    assert a.planes is not None
    assert b.planes is not None
    most = a.most + b.most
    total, planes = _of_bits(one, a.planes, b.planes.view(b.planes.shape[0], *a.planes.shape[1:]), most)
    attach(total, planes, a.length, most)
    if learns(one, other):
        total = cast(Tensor, _apply(one, other, total, support))
    return total


def _can_add(a: Provenance, b: Provenance) -> bool:
    """Whether both summands are known as bits that can be added word by word."""
    return (
        a.planes is not None
        and b.planes is not None
        and a.length % WORD == 0
        and b.length % WORD == 0
        and a.most + b.most < 1 << MOST
    )


def _support(one: Tensor, other: Tensor, a: Provenance | None, b: Provenance | None) -> Provenance | None:
    """The provenance of the sum: the union of the masks of the summands that take a gradient."""
    wanted = [_explicit(known) for each, known in ((one, a), (other, b)) if each.requires_grad]
    if None in wanted:
        return None
    first, *rest = [known for known in wanted if known is not None]
    if not rest:
        return first
    (second,) = rest
    assert first.bits is not None
    assert second.bits is not None
    whole = first.length % WORD == 0 and second.length % WORD == 0
    if not (whole or (first.length == second.length and first.bits.shape == second.bits.shape)):
        return None
    assert first.observers is not None
    assert second.observers is not None
    bits = first.bits | second.bits.view(first.bits.shape)
    return Provenance(bits, first.length, (*first.observers, *second.observers))


def _explicit(known: Provenance | None) -> Provenance | None:
    """`known` with the bits of its mask written out, where they are the spikes themselves."""
    if known is None or known.observers is None:
        return None
    return Provenance(known.spikes if known.bits is None else known.bits, known.length, known.observers)


def _of_bits(one: Tensor, a: Tensor, b: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The sum, with the strides of `one` and numbers up to `most`, and its planes, from those of both."""
    total = torch.empty_like(one)
    count = most.bit_length()
    planes = torch.empty(count, *a.shape[1:], dtype=torch.uint8, device="cpu")
    words = a[0].numel() // LONG.size
    given = {"one": a, "other": b, "planes": planes, "target": total, "words": words}
    _added(words, GRAIN, **given, of_one=a.shape[0], of_other=b.shape[0], count=count)
    return total, planes


class _Sum(torch.autograd.Function):
    """The gradient of a sum that was computed from bits."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, total: Tensor, support: Provenance | None) -> Tensor:
        ctx.strides, ctx.support = total.stride(), support
        return total.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad = grad if are_batched([grad]) else _lying(grad, ctx.strides)
        return grad, grad, None, None


_apply = applied(_Sum)


def _lying(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`grad` with the strides that both producers need, so that it is copied once and not by each."""
    if grad.stride() == strides or not fills_memory(grad) or torch.is_grad_enabled():
        return grad
    lying = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device)
    return lying.copy_(grad)


@kernel
def _added(
    code: Code,
    begin: Value,
    end: Value,
    *,
    one: Longs,
    other: Longs,
    planes: Longs,
    target: Floats,
    words: Value,
    of_one: int,
    of_other: int,
    count: int,
) -> None:
    """Adds numbers given as planes of bits: a ripple-carry adder over words of 64 numbers.

    Writes the sum as `count` planes and as float32. One work item is a word.
    """
    with code.loop(begin, end) as word:
        carry: Value | None = None
        found = []
        for k in range(count):
            bits = [(one + words * k)[word]] if k < of_one else []
            bits += [(other + words * k)[word]] if k < of_other else []
            bits += [] if carry is None else [carry]
            total, carry = _bit(bits)
            found.append(code.constant(0) if total is None else total)
        for k, bits_of_plane in enumerate(found):
            (planes + words * k)[word] = bits_of_plane
        for lane in range(0, WORD, VECTOR):
            number = code.constant(0.0, FLOAT.of(VECTOR))
            for k, bits_of_plane in enumerate(found):
                there = (bits_of_plane >> lane).mask(VECTOR)
                number += there.select(code.constant(2.0**k, FLOAT.of(VECTOR)), 0.0)
            (target + word * WORD + lane).store(number)


def _bit(bits: list[Value]) -> tuple[Value | None, Value | None]:
    """A full adder on words: sum and carry of up to three bits; None for zero."""
    if not bits:
        return None, None
    total, carry = bits[0], None
    for bit in bits[1:]:
        more = total & bit
        carry = more if carry is None else carry | more
        total = total ^ bit
    return total, carry
