"""Weights that are rounded while a network is trained, and how they become plain again."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Rounded", "RoundedBias", "without_rounding"]


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
            scale = self.scale(weight).view([-1] + [1] * (weight.ndim - 1))
            change = (weight / scale).round() * scale - weight
        return weight + change

    def scale(self, weight: Tensor) -> Tensor:
        """``s`` of each output channel, or one for all."""
        largest = weight.abs().flatten(1).amax(1) if self.of_channels else weight.abs().amax()
        return torch.where(largest > 0, largest / self.limit, 1.0)


class RoundedBias(nn.Module):
    """``q s s_in`` of a bias, ``q = round(b / (s s_in))``: in units of weights times inputs, as above.

    Args:
        weights: how the weights are rounded.
        weight: the parameter that they are rounded of, followed as it is trained.
        of_input: ``s_in``, what a unit of the input is.
    """

    def __init__(self, weights: Rounded, weight: nn.Parameter, of_input: float) -> None:
        super().__init__()
        self.of_input = of_input
        self.of_layer = weights, weight  # in a tuple: they are the layer's, and not this module's

    def forward(self, bias: Tensor) -> Tensor:
        weights, weight = self.of_layer
        with torch.no_grad():
            unit = weights.scale(weight) * self.of_input
            change = (bias / unit).round() * unit - bias
        return bias + change


def without_rounding(net: nn.Module) -> nn.Module:
    """A copy of `net` whose rounded weights and biases are plain ones."""
    plain = copy.deepcopy(net)
    for module in list(plain.modules()):
        held: Any = getattr(module, "parametrizations", None)
        if held is not None and "weight" in held and any(isinstance(p, Rounded) for p in held["weight"]):
            # torch's own way back takes the property from a class that copies share
            rounded = {name: getattr(module, name).detach() for name in held}
            del module._modules["parametrizations"]
            module.__class__ = parametrize.type_before_parametrizations(module)
            for name, values in rounded.items():
                module.register_parameter(name, nn.Parameter(values))
    return plain
