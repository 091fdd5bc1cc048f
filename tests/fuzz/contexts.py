"""The contexts in which a network is called: plainly, or by a transform of PyTorch around each layer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

__all__ = ["BATCHED", "CONTEXTS", "called", "gradients", "parametrized"]

BATCHED = "batched gradients"
PARAMETRIZED = "parametrized"
CONTEXTS = ["functional_call", "checkpoint", "reentrant checkpoint", PARAMETRIZED, BATCHED]


class _Halved(nn.Module):
    """A parametrisation that keeps weights on their grid."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def parametrized(net: nn.Module, context: str) -> nn.Module:
    """`net`, its weights and delays parametrised if the `context` says so."""
    if context == PARAMETRIZED:
        for layer in list(net.modules()):
            for name in ("weight", "delay"):
                if isinstance(layer._parameters.get(name), nn.Parameter):
                    parametrize.register_parametrization(layer, name, _Halved())
    return net


def called(layer: nn.Module, h: Tensor, context: str) -> Tensor:
    """What `layer` makes of `h` in the `context`."""
    out: Tensor
    match context:
        case "functional_call":  # with tensors that are not parameters, whose gradients go on to these
            tensors = {name: parameter * 1.0 for name, parameter in layer.named_parameters()}
            out = torch.func.functional_call(layer, tensors, (h,))
        case "checkpoint" | "reentrant checkpoint":
            out = checkpoint(layer, h, use_reentrant=context.startswith("reentrant"))  # type: ignore[no-untyped-call]
        case _:
            out = layer(h)
    return out


def gradients(out: Tensor, loss: Tensor, leaves: list[Tensor], *, batched: bool) -> list[Any]:
    """The gradients of `leaves` for two gradients of `out`, ``[2, ...]`` each: batched, or one by one.

    The first is that of `loss`, as far as it goes through `out`.
    """
    (first,) = torch.autograd.grad(loss, [out], retain_graph=True, allow_unused=True)
    first = torch.zeros_like(out) if first is None else first
    both = torch.stack([first, first * 0.25])
    if batched:
        return list(torch.autograd.grad(out, leaves, both, allow_unused=True, is_grads_batched=True))
    each = [torch.autograd.grad(out, leaves, one, allow_unused=True, retain_graph=True) for one in both]
    return [None if one is None else torch.stack([one, other]) for one, other in zip(*each, strict=True)]
