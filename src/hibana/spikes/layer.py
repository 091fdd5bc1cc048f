"""Code shared by linear layers and convolutions of spikes: packing the input into bits, and ``explain``."""

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.memory_layout import fills_memory
from hibana.runtime import available
from hibana.spikes import select
from hibana.spikes.bits import Planes, pack_integers, pack_multiples, sampled_density
from hibana.spikes.provenance import Provenance

__all__ = ["NOT_SPIKES", "SMALLEST_WORK", "SMALL_PRODUCT", "SMALL_PRODUCT_REASON", "UNSUPPORTED", "Mode"]
__all__ += ["SpikeLayer", "check_mode", "mask_provenance", "needs_gradient"]
__all__ += ["pack_input"]

Mode = Literal["auto", "dense", "events"]

SMALLEST_WORK = 12_000_000
"""Multiplications below which torch always computes a product: estimates would take as long."""

SMALL_PRODUCT_REASON = "looking for spikes does not pay at these sizes"
SMALL_PRODUCT = f"dense: {SMALL_PRODUCT_REASON}"
"""The ``explain`` text of a layer whose product is below :data:`SMALLEST_WORK`. It is written to the layer's
``__dict__``, since ``Module.__setattr__`` takes a microsecond, which is measurable for such a product."""
UNSUPPORTED = "compiled, transformed, or not float32 on the CPU"
NOT_SPIKES = "the input is neither spikes nor small whole numbers"


class SpikeLayer(nn.Module):
    """Base class of the layers that multiply spikes with weights: the dense fallbacks, and ``explain``."""

    mode: Mode = "auto"
    _reason: object = "not called yet"
    """``str`` of it describes how the last call was computed."""

    def _torch_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The product of `input` and `weight` by torch."""
        raise NotImplementedError

    def _dense_product(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        """The product by torch; `reason` is stored for ``explain``."""
        self.__dict__["_reason"] = f"dense: {reason}"
        return self._torch_product(input, weight, bias)

    def _tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias; a call reads them once, since a parametrization may change at each reading."""
        return cast(Tensor, self.weight), cast(Tensor | None, self.bias)

    def _forward_compiling(self, input: Tensor) -> Tensor:  # noqa: A002
        """The forward of torch's layer, for ``torch.compile``."""
        self.__dict__["_reason"] = f"dense: {UNSUPPORTED}"
        out: Tensor = super().forward(input)
        return out

    def _forward_unsupported(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The forward for tensors that kernels do not accept: a node of a trace, or the product by torch."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        return self._dense_product(input, weight, bias, available.unavailable_reason() or UNSUPPORTED)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return str(self._reason)


def check_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is a :data:`Mode`."""
    if mode not in ("auto", "dense", "events"):
        raise ValueError(f'mode must be "auto", "dense" or "events", got {mode!r}')


def pack_input(numbers: Tensor, rows: Callable[[], Tensor], key: select.Key, auto: bool) -> Planes | str:
    """The input of a product as bit planes; or the reason why torch must compute the product.

    Torch must if the input holds neither spikes nor small whole numbers or, with `auto`, if the density of a
    sample is too high.

    Args:
        numbers: the input, detached.
        rows: returns the input as contiguous rows.
        key: kind and sizes of the product, without density and number of bit planes.
        auto: whether a high density makes the product dense; if False, the input is always packed.
    """
    if auto and not select.is_promising(key._replace(learning=False), key.learning):
        return SMALL_PRODUCT_REASON
    filled = numbers if fills_memory(numbers) else rows()
    density = sampled_density(filled)
    if density is not None:
        if auto and not select.is_tuning():
            choice = select.choose(key, density)
            if not choice.any:
                return choice.dense_reason(density)
        planes = pack_multiples(rows())
        if planes is not None:
            return planes
    return pack_integers(filled, rows) or NOT_SPIKES


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a gradient for any of the `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def mask_provenance(
    provenance: Provenance | None, numbers: Tensor, is_contiguous: bool, spikes: Planes, length: int
) -> Provenance | None:
    """`provenance`, if its mask may restrict the input gradient; else None.

    Args:
        provenance: the gradient mask that a layer attached to the input, or None.
        numbers: the input.
        is_contiguous: whether the input is contiguous, row after row.
        spikes: the input as bits. They replace a mask of spikes whose rows do not begin at words.
        length: elements of a row of the input.
    """
    if provenance is None or not is_contiguous:
        return None
    if provenance.rows(length) is None:
        if not provenance.is_mask_of(numbers):
            return None
        return provenance._replace(length=length, mask=spikes.bits[0].view(torch.uint8))
    return provenance
