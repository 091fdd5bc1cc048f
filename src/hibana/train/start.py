"""Where training starts from: weights scaled so that each layer fires at a wanted rate.

A spiking layer that starts silent gets no gradient, and one that starts far above its target is thrown
below it by the penalty; both are avoided by starting on it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hibana import layers
from hibana.loop import emits_spikes
from hibana.loop.graph.ops import Unsupported

__all__ = ["scale_to_rate", "spiking_layers"]


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of `net` that emit spikes, by name: those whose cell's step emits zeros and ones.

    Raises:
        RuntimeError: naming the layer, if that can't be read from a step and the cell does not say it itself.
    """
    return {name: layer for name, layer in net.named_modules() if _spikes(name, layer)}


def _spikes(name: str, layer: nn.Module) -> bool:
    if not isinstance(layer, layers.OverTime | layers.Recurrent):
        return False
    try:
        return emits_spikes(layer.cell)
    except Unsupported as error:
        raise Unsupported(f"layer {name!r}: {error}") from error


@torch.no_grad()
def scale_to_rate(net: nn.Module, inputs: Tensor, rate: float) -> dict[str, float]:
    """Scales the weights below each spiking layer so that it fires at `rate` on `inputs`, first to last.

    For each layer the current ``I`` that reaches it is multiplied by the ``k`` for which
    ``mean(spikes(k I)) = rate``, found by bisection on a logarithmic scale; weight and bias of the last
    module with weights before it take the factor.

    Args:
        net: called as ``net(inputs)``; it is changed in place, and left in the mode that it was in.
        inputs: ``[T, batch, ...]``, a batch of the training set.
        rate: spikes per neuron and step, in (0, 1).

    Returns:
        The rate that each spiking layer starts at, by name. A layer whose current is nowhere positive
        can't fire, and keeps its weights.

    Raises:
        ValueError: if `rate` is not in (0, 1).

    Source: Mishkin & Matas (2016), *All you need is a good init*, for variances; here for rates.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(50, 200), hb.IF(), nn.Linear(200, 200), hb.IF())
    >>> rates = scale_to_rate(net, torch.rand(10, 20, 50), 0.1)
    >>> [round(rate, 2) for rate in rates.values()]
    [0.1, 0.1]
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), in spikes per neuron and step, got {rate!r}")
    training = net.training
    net.train()
    started = {}
    for name, layer in spiking_layers(net).items():
        current, below = _reaching(net, layer, inputs)
        factor = _factor(layer, current, rate)
        for parameter in () if below is None else below.parameters(recurse=False):
            parameter.mul_(factor)
        started[name] = layer(current * factor).mean().item()
    net.train(training)
    return started


def _factor(layer: nn.Module, current: Tensor, rate: float) -> float:
    """What to multiply `current` with for `layer` to fire at `rate`."""
    if not bool((current > 0).any()):
        return 1.0
    low, high = -20.0, 20.0  # base 2
    while high - low > 1e-3:
        middle = (low + high) / 2
        if layer(current * 2.0**middle).mean() < rate:
            low = middle
        else:
            high = middle
    return float(2.0**high)


def _reaching(net: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, nn.Module | None]:
    """The current that reaches `layer` when `net` runs, and the last module with weights called before."""
    called: list[nn.Module] = []
    currents: list[Tensor] = []

    def weighted(module: nn.Module, args: Any) -> None:
        if not currents:
            called.append(module)

    def reached(module: nn.Module, args: Any) -> None:
        currents.append(args[0])

    inner = set(layer.modules())
    hooks = [
        module.register_forward_pre_hook(weighted)
        for module in net.modules()
        if module not in inner and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    hooks.append(layer.register_forward_pre_hook(reached))
    try:
        net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not currents:
        raise ValueError("net must call each of its spiking layers, and one was not called")
    return currents[0], called[-1] if called else None
