"""What linear layers and convolutions share: how an input becomes bits, and what ``explain`` reports."""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hibana.compiler.leaf import as_leaf, is_name
from hibana.spikes import select
from hibana.spikes.bits import bits_of
from hibana.spikes.planes import Planes, whole_numbers
from hibana.spikes.provenance import Provenance, may_have_bits
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
    "binary_bits",
    "check_mode",
    "known_bits",
    "learns",
    "numbers_as_bits",
    "usable",
]

Mode = Literal["auto", "dense", "events"]

SMALLEST_WORK = 12_000_000
"""Of fewer multiplications torch has done all before events have begun."""
TINY = "at these sizes torch is sooner done at any density"
LEFT = f"dense: {TINY}"
"""What a layer says that is left to torch for its size. It is set in the layer's ``__dict__``: by way of the
module that takes a microsecond, which would tell there."""
SAMPLE = 128
"""Words of numbers, one after the other, that are looked at before all are."""
NOT_PLAIN = "compiled, transformed, under autocast, or not float32 on the CPU"
NO_EVENTS = "the input is neither spikes nor small whole numbers"


class BySpikes(nn.Module):
    """What layers of weights share: how a call is computed is chosen, and said."""

    mode: Mode = "auto"
    _reason: object = "not called yet"
    """Of which the text says how the last call was computed."""

    def _torchs(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """Torch's own product."""
        raise NotImplementedError

    def _densely(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        self.__dict__["_reason"] = f"dense: {reason}"
        return self._torchs(input, weight, bias)

    def _tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, looked up where they mostly are: a module looks elsewhere first.

        They are read once a call, since a parametrisation may compute them, and iterate as it does.
        """
        try:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # parametrized, or made of others
            return cast(Tensor, self.weight), cast(Tensor | None, self.bias)
        assert weight is not None
        return weight, bias

    def _leave(self, input: Tensor, reason: str) -> None:  # noqa: A002
        """Remembers sizes too small for kernels per spike, so that the next such call asks nothing."""
        if reason == TINY:
            self.__dict__["_left"] = input.shape, torch.is_grad_enabled()

    def _is_left(self, input: Tensor) -> bool:  # noqa: A002
        """Whether an `input` of these sizes was left to torch; one whose bits are kept may pay."""
        left = self.__dict__.get("_left") == (input.shape, torch.is_grad_enabled())
        return left and not may_have_bits(input)

    def _compiled(self, input: Tensor) -> Tensor:  # noqa: A002
        self.__dict__["_reason"] = f"dense: {NOT_PLAIN}"
        out: Tensor = super().forward(input)
        return out

    def _left_to_torch(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        return self._densely(input, weight, bias, NOT_PLAIN)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return str(self._reason)


def check_mode(mode: str) -> None:
    """Raises ValueError for a mode that there is not."""
    if mode not in ("auto", "dense", "events"):
        raise ValueError(f'mode must be "auto", "dense" or "events", got {mode!r}')


def known_bits(below: Provenance | None, length: int, in_order: bool) -> Planes | None:
    """The planes of bits that are known of what stands `below`, as rows of `length` elements.

    None if there are none, or the input does not lie `in_order`, as rows do.
    """
    if below is None or below.planes is None or not in_order:
        return None
    planes = below.planes.shape[0]
    found = below.rows(below.planes, length)
    if found is None:
        return None
    return Planes(found, below.ones / max(1, found.shape[1] * planes * length))


def numbers_as_bits(rows: Tensor) -> Planes | str:
    """Contiguous `rows` of spikes or of small whole numbers as bits; or why they are left to torch."""
    return binary_bits(rows) or whole_numbers(rows) or NO_EVENTS


class Found(NamedTuple):
    """An input as bits, and how its times are looked up."""

    planes: Planes
    key: select.Key


def as_bits(
    below: Provenance | None,
    length: int,
    in_order: bool,
    rows: Callable[[], Tensor],
    key: select.Key,
    auto: bool,
) -> Found | str:
    """An input as planes of bits, known from what stands `below` or made of its numbers; or why torch's.

    Args:
        below: what is known of the input.
        length: of a row.
        in_order: whether the input lies as rows do.
        rows: makes contiguous rows of the input.
        key: of the call, but for what depends on the input.
        auto: whether what was found to take longer per spike is left to torch, without making bits.
    """
    planes = known_bits(below, length, in_order)
    if planes is not None:
        return Found(planes, _key(key, planes))
    numbers = rows()
    density = _density(numbers)
    if density is not None:
        # of the sample, not of all bits: a recomputation asks for the same key
        sampled = key._replace(density=select.density_bucket(density), scanned=True)
        choice = select.known(sampled) if auto and not select.priors_only() else None
        if choice is not None and not choice.any:
            return choice.refused(density)
        planes = _binary(numbers)
        if planes is not None:
            return Found(planes, sampled)
    planes = whole_numbers(numbers)
    if planes is None:
        return NO_EVENTS
    return Found(planes, _key(key._replace(scanned=True), planes))


def _key(key: select.Key, planes: Planes) -> select.Key:
    density = select.density_bucket(planes.density)
    return key._replace(density=density, planes=planes.bits.shape[0])


def binary_bits(rows: Tensor) -> Planes | None:
    """The bits of contiguous `rows`; None if not all are 0 and 1, which a sample mostly tells."""
    return None if _density(rows) is None else _binary(rows)


def _binary(rows: Tensor) -> Planes | None:
    bits, density = bits_of(rows)
    return None if density is None else Planes(bits[None], density)


def _density(rows: Tensor) -> float | None:
    """The density of ones in a sample of contiguous `rows`; None if not all are 0 and 1.

    Its words are an odd number apart, or they would all be of the same columns.
    """
    words = rows.numel() // WORD
    lying = rows.as_strided((words, WORD), (WORD, 1)) if words else rows
    return bits_of(lying, words // SAMPLE | 1)[1]


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient of any of the `tensors` will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def usable(below: Provenance | None, length: int, in_order: bool, input_: Planes) -> Provenance | None:
    """`below`, unless rows of `length` elements of it can't be told for an `input_` that lies `in_order`."""
    if below is None or below.observers is None:
        return None
    if below.bits is None:  # it is the spikes, whatever somebody multiplied them by since
        return below if input_.bits.shape[0] == 1 else None
    return below if in_order and below.rows(below.bits, length) is not None else None
