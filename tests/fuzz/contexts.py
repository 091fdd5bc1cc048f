"""The contexts in which a network is called: plainly, or by a transform of PyTorch around each layer."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

__all__ = ["CONTEXTS", "called", "parametrized"]

PARAMETRIZED = "parametrized"
CONTEXTS = ["functional_call", "checkpoint", "reentrant checkpoint", PARAMETRIZED]


class _Halved(nn.Module):
    """A parametrization that keeps weights on their grid."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def parametrized(net: nn.Module, context: str) -> nn.Module:
    """`net`, its weights and delays parametrized if the `context` says so."""
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
