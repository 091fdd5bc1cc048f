"""What linear layers and convolutions share: how an input becomes bits, and what ``explain`` reports."""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hibana.compiler.ambient import as_leaf, is_name, saved_tensor_hooks
from hibana.compiler.torch_layers import SMALLEST_WORK
from hibana.runtime import available
from hibana.spikes import select
from hibana.spikes.bits import bits_of, sampled_density
from hibana.spikes.planes import Planes, factors, whole_numbers
from hibana.spikes.provenance import Provenance, fills_memory, may_have_bits
from hibana.spikes.simd.lists import WORD

__all__ = [
    "BY_ONEDNN",
    "LEFT",
    "NO_EVENTS",
    "SMALLEST_WORK",
    "TINY",
    "BySpikes",
    "Found",
    "Mode",
    "Refused",
    "as_bits",
    "binary_bits",
    "check_mode",
    "known_bits",
    "learns",
    "numbers_as_bits",
    "usable",
]

Mode = Literal["auto", "dense", "events"]

TINY = "at these sizes torch is sooner done at any density"
LEFT = f"dense: {TINY}"
"""The text of a layer whose product goes to torch for its size. It is written to the layer's ``__dict__``,
since ``Module.__setattr__`` takes a microsecond, which is measurable for such a product."""
SAMPLE = 128
"""Words of 64 numbers that are sampled before all numbers are scanned."""
BY_ONEDNN = "; by oneDNN"
LOOKED_AT = 16
"""Dense calls in a row, alike, after which only one of so many is looked at."""
NOT_PLAIN = "compiled, transformed, under autocast, or not float32 on the CPU"
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

    def _remember(self, numbers: Tensor, weight: Tensor, refused: "Refused", by_onednn: bool) -> None:
        """Has calls with an input like these `numbers` go to torch: see :meth:`_refuses`."""
        self.__dict__["_refused"] = _Dense(_call(numbers, weight), refused, by_onednn)

    def _refuses(self, numbers: Tensor, weight: Tensor) -> "_Dense | None":
        """What was found of a call that was dense for what its input holds, if this one is like it.

        A sample of the `numbers` is looked at, as :func:`as_bits` does before all else.
        """
        last: _Dense | None = self.__dict__.get("_refused")
        if (
            last is None
            or self.mode != "auto"
            or last.call != _call(numbers, weight)
            or may_have_bits(numbers)
            or select.priors_only()
        ):
            return None
        return last if last.looks_alike(numbers.detach() if numbers.requires_grad else numbers) else None

    def _refuses_unseen(self, numbers: Tensor, weight: Tensor) -> "_Dense | None":
        """The last dense call, if this one, of the same sizes, is dense without a look at its `numbers`.

        That is so for a while after LOOKED_AT dense calls alike. Within a checkpoint each call is looked at:
        what is computed again in the backward must be dense if its forward was.
        """
        last: _Dense | None = self.__dict__.get("_refused")
        if (
            last is None
            or last.unseen <= 0
            or self.mode != "auto"
            or type(numbers) is not Tensor
            or last.call != _call(numbers, weight)
            or saved_tensor_hooks() is not None
            or torch.are_deterministic_algorithms_enabled()
        ):
            return None
        last.unseen -= 1
        return last

    def _compiled(self, input: Tensor) -> Tensor:  # noqa: A002
        self.__dict__["_reason"] = f"dense: {NOT_PLAIN}"
        out: Tensor = super().forward(input)
        return out

    def _left_to_torch(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        return self._densely(input, weight, bias, available.refusal() or NOT_PLAIN)

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
    return binary_bits(rows) or whole_numbers(rows) or NO_EVENTS


class Refused(NamedTuple):
    """Why a product is torch's for what its input holds."""

    reason: str
    density: int | None
    """The interval: :func:`hibana.spikes.select.density_bucket` of a sample; None if that had other numbers
    than 0 and 1."""

    def __str__(self) -> str:
        return self.reason


class _Dense:
    """A call that was torch's for what its input held."""

    def __init__(self, call: tuple[object, ...], refused: Refused, by_onednn: bool) -> None:
        self.call = call
        """:func:`_call`."""
        self.reason = f"dense: {refused}{BY_ONEDNN if by_onednn else ''}"
        self.density = refused.density
        self.by_onednn = by_onednn
        self.alike = 0
        """Calls in a row that were looked at and alike."""
        self.unseen = 0
        """How many calls are still to be dense without a look."""

    def looks_alike(self, numbers: Tensor) -> bool:
        """Whether a sample of `numbers` is like that of this call."""
        density = _density(numbers)
        if density is None:
            alike = self.density is None and not factors(numbers)
        else:
            alike = select.density_bucket(density) == self.density
        self.alike = self.alike + 1 if alike else 0
        self.unseen = LOOKED_AT - 1 if self.alike >= LOOKED_AT else 0
        return alike


def _call(numbers: Tensor, weight: Tensor) -> tuple[object, ...]:
    """What calls have in common that one look may serve: the input's shape and strides, the number of
    threads, and whether the weight learns.
    """
    return numbers.shape, numbers.stride(), torch.get_num_threads(), learns(weight)


class Found(NamedTuple):
    """An input as bits, and the key under which the times of its product are stored."""

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
) -> Found | Refused | str:
    """The input of a product as planes of bits: those that its producer saved, or packed from its numbers.

    Where it is not to be multiplied as bits, the reason, for ``explain``: it holds no spikes or small whole
    numbers, or, with `auto`, the dense product was faster at its density; of the kind :class:`Refused` where
    a sample told so.

    Args:
        below: the provenance of the input.
        length: elements of a row.
        in_order: whether the input is contiguous, row after row.
        numbers: the input, detached.
        rows: returns it as contiguous rows.
        key: of the call, without density and planes.
        auto: whether to return early, without packing bits, where the dense product was found to be faster.
    """
    planes = known_bits(below, length, in_order)
    if planes is not None:
        return Found(planes, _key(key, planes))
    seen = numbers if fills_memory(numbers) else rows()
    density = _density(seen)
    if density is not None:
        # the density of the sample, not of all bits, so that a recomputation gets the same key
        sampled = key._replace(density=select.density_bucket(density), scanned=True)
        choice = select.known(sampled) if auto and not select.priors_only() else None
        if choice is not None and not choice.any:
            reason = choice.refused(density)
            return reason if choice.provisional else Refused(reason, sampled.density)
        planes = _binary(rows())
        if planes is not None:
            return Found(planes, sampled)
    planes = whole_numbers(rows()) if density is not None or factors(seen) else None
    if planes is None:
        return Refused(NO_EVENTS, None) if density is None else NO_EVENTS
    return Found(planes, _key(key._replace(scanned=True), planes))


def _key(key: select.Key, planes: Planes) -> select.Key:
    density = select.density_bucket(planes.density)
    return key._replace(density=density, planes=planes.bits.shape[0])


def binary_bits(rows: Tensor) -> Planes | None:
    """The bits of contiguous `rows`; None if not all are 0 and 1 (a sample is tested first)."""
    return None if _density(rows) is None else _binary(rows)


def _binary(rows: Tensor) -> Planes | None:
    bits, density = bits_of(rows)
    return None if density is None else Planes(bits[None], density)


def _density(rows: Tensor) -> float | None:
    """The density of ones in a sample of `rows` that fill their memory; None if not all of it are 0 and 1.

    The stride of the sample is odd, or all sampled words could be of the same columns.
    """
    words = rows.numel() // WORD
    return sampled_density(rows, words, words // SAMPLE | 1) if words else bits_of(rows)[1]


def learns(*tensors: Tensor | None) -> bool:
    """Whether autograd records a gradient for any of the `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def usable(below: Provenance | None, length: int, in_order: bool, input_: Planes) -> Provenance | None:
    """`below`, if the input gradient may be restricted to its mask, in rows of `length`; else None."""
    if below is None or below.observers is None:
        return None
    if below.bits is None:  # the mask is the spikes themselves
        return below if input_.bits.shape[0] == 1 else None
    return below if in_order and below.rows(below.bits, length) is not None else None
