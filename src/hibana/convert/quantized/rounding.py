"""Weights that are rounded while a network is trained, and how they become plain again."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Rounded", "without_rounding"]


class Rounded(nn.Module):
    """``q s`` of weights, ``q = round(w / s)``, with the gradient of ``w``.

    Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic
    neurons for conditional computation*: the straight-through estimator.
    """

    def __init__(self, limit: int, of_channels: bool) -> None:
        super().__init__()
        self.limit, self.of_channels = limit, of_channels

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            largest = weight.abs().flatten(1).amax(1) if self.of_channels else weight.abs().amax()
            scale = torch.where(largest > 0, largest / self.limit, 1.0)
            scale = scale.view([-1] + [1] * (weight.ndim - 1)) if self.of_channels else scale
            change = (weight / scale).round() * scale - weight
        return weight + change


def without_rounding(net: nn.Module) -> nn.Module:
    """A copy of `net` whose rounded weights are plain ones."""
    plain = copy.deepcopy(net)
    for module in list(plain.modules()):
        held: Any = getattr(module, "parametrizations", None)
        if held is not None and "weight" in held and any(isinstance(p, Rounded) for p in held["weight"]):
            # torch's own way back takes the property from a class that copies share
            weight = cast(Any, module).weight.detach()
            del module._modules["parametrizations"]
            module.__class__ = parametrize.type_before_parametrizations(module)
            module.register_parameter("weight", nn.Parameter(weight))
    return plain
