"""Layers of ``torch.nn`` whose work follows the spikes."""

from typing import Literal

import torch
from torch import Tensor, nn

from hibana.events import product
from hibana.events.support import support_of

__all__ = ["Linear", "adopt"]

Mode = Literal["auto", "dense", "events"]

SMALLEST_ROWS = 256
"""Fewer rows than this do not pay for packing the weights."""
SAMPLE = 64


class Linear(nn.Linear):
    """``torch.nn.Linear``, which for an input of spikes adds a row of weights per spike.

    Takes the same arguments, holds the same parameters, and computes ``x W^T + b`` and its gradients, sums
    in another order. An input ``[..., in_features]`` that is not all 0 and 1 is multiplied densely, by
    torch; so is any but float32 on the CPU, and a call that is being compiled or transformed. An input
    that does not change over time (expanded: zero stride) costs one product, and its result is expanded.
    Of spikes only bits are kept for the backward. Where the input comes from a layer of hibana, its
    gradient is computed only where that layer's surrogate can let it through, if nobody else looks at it.

    `mode` is ``"auto"``, or forces ``"dense"`` or (wherever they are possible) ``"events"``. With events a
    second derivative raises ``RuntimeError``: set ``mode = "dense"`` for it.

    >>> import torch, hibana as hb
    >>> layer = hb.Linear(784, 512)
    >>> spikes = (torch.rand(25, 128, 784) < 0.05).float()
    >>> torch.allclose(layer(spikes), torch.nn.functional.linear(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> layer.explain()
    'events: 5% of the input spiked'
    """

    mode: Mode = "auto"
    _reason = "not called yet"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        if torch.compiler.is_compiling() or not _plain(input, self.weight, self.bias):
            return super().forward(input)
        if input.ndim > 1 and input.shape[0] > 1 and input.stride(0) == 0 and input.numel():
            once = self.forward(input[0])  # not a call of its own: hooks run once
            self._reason = f"one step for all {input.shape[0]}: {self._reason}"
            spread: Tensor = once.expand(input.shape[0], *once.shape)
            return spread
        return self._of_spikes(input)

    def _of_spikes(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.mode not in ("auto", "dense", "events"):
            raise ValueError(f'mode must be "auto", "dense" or "events", got {self.mode!r}')
        count = input.numel() // max(1, self.in_features)
        if self.mode == "dense":
            return self._densely(input, "asked for")
        if input.shape[-1:] != (self.in_features,) or count == 0 or self.out_features == 0:
            return self._densely(input, "nothing to add")
        if self.mode == "auto" and count < SMALLEST_ROWS:
            return self._densely(input, f"{count} rows do not pay for packing the weights")
        rows = input.reshape(count, self.in_features)
        if not rows.is_contiguous():
            rows = rows.contiguous()
        weight = self.weight if self.weight.is_contiguous() else self.weight.contiguous()
        held = rows.detach()
        if count > 2 * SAMPLE and product.bits_of(held, count // SAMPLE)[1] is None:
            return self._densely(input, "the input is not all 0 and 1")
        bits, share = product.bits_of(held)
        if share is None:
            return self._densely(input, "the input is not all 0 and 1")
        self._reason = f"events: {share:.0%} of the input spiked"
        learns = (rows, weight, self.bias)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learns):
            support = support_of(input) if input.requires_grad else None
            out = product.linear(rows, weight, self.bias, bits, share, support)
        else:
            out = product.forward(bits, share, weight.detach(), self.bias)[0]
        return out.view(*input.shape[:-1], self.out_features)

    def _densely(self, input: Tensor, reason: str) -> Tensor:  # noqa: A002
        self._reason = f"dense: {reason}"
        return super().forward(input)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32 on the CPU, and nothing but autograd watches the call."""
    return (
        not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and all(
            t is None
            or (
                type(t) in (Tensor, nn.Parameter)
                and t.dtype == torch.float32
                and t.device.type == "cpu"
                and t.layout == torch.strided
            )
            for t in tensors
        )
    )


def adopt(module: nn.Module) -> nn.Module:
    """Makes every ``torch.nn.Linear`` in `module` a :class:`Linear`, in place, and returns it.

    Parameters, buffers and hooks stay the same objects. Subclasses of ``torch.nn.Linear`` are left alone.

    >>> import torch, hibana as hb
    >>> hb.events.adopt(torch.nn.Sequential(torch.nn.Linear(2, 3), hb.IF()))[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = Linear
    return module
