"""Contexts in which a network is called: directly, or with a transform of PyTorch around each layer."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

__all__ = ["CONTEXTS", "call_in_context", "parametrize_weights"]

PARAMETRIZED = "parametrized"
CONTEXTS = ["functional_call", "checkpoint", "reentrant checkpoint", PARAMETRIZED]


class _Halved(nn.Module):
    """A parametrization that halves weights; the results are exact, as weights are dyadic fractions."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def parametrize_weights(net: nn.Module, context: str) -> nn.Module:
    """Parametrizes the weights and delays of `net` if the `context` is ``"parametrized"``; returns `net`."""
    if context == PARAMETRIZED:
        for layer in list(net.modules()):
            for name in ("weight", "delay"):
                if isinstance(layer._parameters.get(name), nn.Parameter):
                    parametrize.register_parametrization(layer, name, _Halved())
    return net


def call_in_context(layer: nn.Module, h: Tensor, context: str) -> Tensor:
    """The output of `layer` for `h`, computed in the `context`."""
    out: Tensor
    match context:
        case "functional_call":  # with tensors computed from the parameters
            tensors = {name: parameter * 1.0 for name, parameter in layer.named_parameters()}
            out = torch.func.functional_call(layer, tensors, (h,))
        case "checkpoint" | "reentrant checkpoint":
            out = checkpoint(layer, h, use_reentrant=context.startswith("reentrant"))  # type: ignore[no-untyped-call]
        case _:
            out = layer(h)
    return out
