"""What linear layers and convolutions share: how an input becomes bits, and what ``explain`` reports."""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.runtime import available
from hibana.spikes import select
from hibana.spikes.bits import pack_bits, sampled_density
from hibana.spikes.planes import Planes, factors, whole_numbers
from hibana.spikes.provenance import Provenance, fills_memory
from hibana.spikes.simd.lists import WORD

__all__ = [
    "LEFT",
    "NO_EVENTS",
    "SMALLEST_WORK",
    "TINY",
    "BySpikes",
    "Found",
    "Mode",
    "as_bits",
    "pack_binary",
    "check_mode",
    "known_bits",
    "needs_gradient",
    "numbers_as_bits",
    "usable",
]

Mode = Literal["auto", "dense", "events"]

SMALLEST_WORK = 12_000_000
"""Multiplications below which a product always goes to torch: packing bits alone would take longer."""

TINY = "at these sizes torch is sooner done at any density"
LEFT = f"dense: {TINY}"
"""The text of a layer whose product goes to torch for its size. It is written to the layer's ``__dict__``,
since ``Module.__setattr__`` takes a microsecond, which is measurable for such a product."""
SAMPLE = 128
"""Words of 64 numbers that are sampled before all numbers are scanned."""
NOT_PLAIN = "compiled, transformed, or not float32 on the CPU"
NO_EVENTS = "the input is neither spikes nor small whole numbers"


class BySpikes(nn.Module):
    """Base of the layers that multiply spikes with weights: how a call is computed, and its report."""

    mode: Mode = "auto"
    _reason: object = "not called yet"
    """``str`` of it describes how the last call was computed."""

    def _torchs(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """Torch's own product."""
        raise NotImplementedError

    def _densely(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        self.__dict__["_reason"] = f"dense: {reason}"
        return self._torchs(input, weight, bias)

    def _tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, read from ``_parameters`` directly where they are there, since
        ``Module.__getattr__`` is slow.

        They are read once a call: reading may run a parametrisation, which may have state
        (``spectral_norm``).
        """
        try:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # parametrized, or made of others
            return cast(Tensor, self.weight), cast(Tensor | None, self.bias)
        assert weight is not None
        return weight, bias

    def _compiled(self, input: Tensor) -> Tensor:  # noqa: A002
        self.__dict__["_reason"] = f"dense: {NOT_PLAIN}"
        out: Tensor = super().forward(input)
        return out

    def _left_to_torch(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        return self._densely(input, weight, bias, available.unavailable_reason() or NOT_PLAIN)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return str(self._reason)


def check_mode(mode: str) -> None:
    """Raises ValueError for a mode that there is not."""
    if mode not in ("auto", "dense", "events"):
        raise ValueError(f'mode must be "auto", "dense" or "events", got {mode!r}')


def known_bits(below: Provenance | None, length: int, in_order: bool) -> Planes | None:
    """The bits that are known of the input, from its provenance `below`, as rows of `length` elements.

    None if there are none, or the input is not contiguous (`in_order`).
    """
    if below is None or below.planes is None or not in_order:
        return None
    planes = below.planes.shape[0]
    found = below.rows(below.planes, length)
    if found is None:
        return None
    return Planes(found, below.ones / max(1, found.shape[1] * planes * length))


def numbers_as_bits(rows: Tensor) -> Planes | str:
    """Contiguous `rows` of spikes or small whole numbers as bits; or, as text, why the product is dense."""
    return pack_binary(rows) or whole_numbers(rows) or NO_EVENTS


class Found(NamedTuple):
    """An input as bits, and the key of its product."""

    planes: Planes
    key: select.Key


def as_bits(
    below: Provenance | None,
    length: int,
    in_order: bool,
    numbers: Tensor,
    rows: Callable[[], Tensor],
    key: select.Key,
    auto: bool,
) -> Found | str:
    """The input of a product as planes of bits: those that its producer saved, or packed from its numbers.

    If the product is computed by torch, the reason as text: the input holds neither spikes nor small whole
    numbers, or, with `auto`, the density of a sample is too high.

    Args:
        below: the provenance of the input.
        length: elements of a row.
        in_order: whether the input is contiguous, row after row.
        numbers: the input, detached.
        rows: returns it as contiguous rows.
        key: of the call, without density and planes.
        auto: whether the density decides; else everything is packed.
    """
    planes = known_bits(below, length, in_order)
    if planes is not None:
        return Found(planes, _key(key, planes))
    sampled = numbers if fills_memory(numbers) else rows()
    density = _density(sampled)
    key = key._replace(scanned=True)
    if density is not None:
        # the density of the sample, not of all bits: a choice is made before all bits are packed
        of_sample = key._replace(density=select.density_bucket(density))
        if auto and not select.is_tuning():
            choice = select.choose(of_sample, density)
            if not choice.any:
                return choice.refused(density)
        planes = _binary(rows())
        if planes is not None:
            return Found(planes, of_sample)
    planes = whole_numbers(rows()) if density is not None or factors(sampled) else None
    return NO_EVENTS if planes is None else Found(planes, _key(key, planes))


def _key(key: select.Key, planes: Planes) -> select.Key:
    density = select.density_bucket(planes.density)
    return key._replace(density=density, planes=planes.bits.shape[0])


def pack_binary(rows: Tensor) -> Planes | None:
    """The bits of contiguous `rows`; None if not all are 0 and 1 (a sample is tested first)."""
    return None if _density(rows) is None else _binary(rows)


def _binary(rows: Tensor) -> Planes | None:
    bits, density = pack_bits(rows)
    return None if density is None else Planes(bits[None], density)


def _density(rows: Tensor) -> float | None:
    """The density of ones in a sample of `rows` that fill their memory; None if not all of it are 0 and 1.

    The stride of the sample is odd, or all sampled words could be of the same columns.
    """
    words = rows.numel() // WORD
    return sampled_density(rows, words, words // SAMPLE | 1) if words else pack_bits(rows)[1]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a gradient for any of the `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def usable(below: Provenance | None, length: int, in_order: bool, input_: Planes) -> Provenance | None:
    """`below`, if the input gradient may be restricted to its mask, in rows of `length`; else None."""
    if below is None or below.observers is None:
        return None
    if below.mask is None:  # the mask is the spikes themselves
        return below if input_.bits.shape[0] == 1 else None
    return below if in_order and below.rows(below.mask, length) is not None else None
