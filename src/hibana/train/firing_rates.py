"""How much a network spikes, and where training starts from: weights scaled to a wanted rate.

A spiking layer that starts silent gets no gradient, and one that starts far above its target is thrown
below it by the penalty; both are avoided by starting on it.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.compiler import emits_spikes, record
from hibana.compiler.graph.ops import Unsupported
from hibana.nn import layers
from hibana.nn import lengths as padding
from hibana.nn.delayed_recurrent import DelayedRecurrent

__all__ = ["Activity", "activity", "weight_decay_groups", "scale_to_rate", "spiking_layers"]


class Activity(dict[str, Tensor]):
    """The spikes ``[T, batch, ...]`` of each spiking layer, by its name.

    Of samples padded to T, spikes after the end are left out; `lengths` are those of the samples.
    """

    lengths: Tensor | None = None

    def rates(self) -> dict[str, float]:
        """Spikes per neuron and step, of each layer."""
        if self.lengths is None:
            return {name: spikes.detach().mean().item() for name, spikes in self.items()}
        steps = int(self.lengths.sum())
        return {
            name: float(spikes.detach().sum()) / (steps * spikes[0, 0].numel())
            for name, spikes in self.items()
        }

    def silent(self) -> dict[str, int]:
        """How many neurons of each layer spiked in none of these samples."""
        return {name: int((~spikes.flatten(0, 1).any(dim=0)).sum()) for name, spikes in self.items()}


def activity(net: nn.Module, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Activity]:
    """What `net` puts out for `inputs`, and the spikes of each of its spiking layers, by name.

    Args:
        net: called as ``net(inputs)``. A warning says if it calls no spiking layer.
        inputs: ``[T, batch, ...]``.
        lengths: of samples that are padded to T, ``[batch]``: spikes after the end are zeros.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(50, 20), hb.IF(), nn.Linear(20, 2), hb.LI())
    >>> outputs, spikes = activity(net, torch.rand(10, 4, 50))
    >>> {name: layer.shape for name, layer in spikes.items()}, list(spikes.rates()), list(spikes.silent())
    ({'1': torch.Size([10, 4, 20])}, ['1'], ['1'])
    """
    spikes = Activity()
    spikes.lengths = None if lengths is None else padding.checked(lengths, inputs)
    hooks = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, outputs: Tensor) -> None:
            spikes[name] = padding.masked(outputs, lengths)

        return hook

    for name, module in _spiking_or_warned(net, "spikes are counted").items():
        hooks.append(module.register_forward_hook(keep(name)))
    try:
        outputs = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, spikes


def _spiking_or_warned(net: nn.Module, what: str) -> dict[str, nn.Module]:
    spiking = spiking_layers(net)
    if not spiking:
        kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in net.modules()))
        message = f"net has no spiking layer of hibana, so that no {what}; it is made of {kinds}"
        warnings.warn(message, stacklevel=3)
    return spiking


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of `net` that emit spikes, by name: those whose cell's step emits zeros and ones.

    Raises:
        RuntimeError: naming the layer, if that can't be read from a step and the cell does not say it itself.
    """
    return {name: layer for name, layer in net.named_modules() if _spikes(name, layer)}


def _spikes(name: str, layer: nn.Module) -> bool:
    if not isinstance(layer, layers.OverTime | layers.Recurrent | DelayedRecurrent):
        return False
    try:
        return emits_spikes(layer.cell)
    except Unsupported as error:
        raise Unsupported(f"layer {name!r}: {error}") from error


@torch.no_grad()
def scale_to_rate(
    net: nn.Module,
    inputs: Tensor,
    rate: float,
    lengths: Tensor | None = None,
    *,
    each_neuron: bool = False,
) -> dict[str, float]:
    """Scales the weights below each spiking layer so that it fires at `rate` on `inputs`, first to last.

    For each layer the current ``I`` that reaches it is multiplied by the ``k`` for which
    ``mean(spikes(k I)) = rate``, found by bisection on a logarithmic scale; weight and bias of the last
    module with weights before it take the factor.

    Args:
        net: called as ``net(inputs)``; it is changed in place, and left in the mode that it was in.
        inputs: ``[T, batch, ...]``, a batch of the training set.
        rate: spikes per neuron and step, in (0, 1).
        lengths: of samples that are padded to T, ``[batch]``: rates are those of their own steps.
        each_neuron: first even out what drives the neurons of a layer: scale the weights of each so that its
            potential ``v``, were there no threshold, deviates as much over time and samples as its
            neighbours'. Of neurons whose time constants are spread, the slow ones are hardly driven else.

    Returns:
        The rate that each spiking layer starts at, by name. A layer whose current is nowhere positive
        can't fire, and keeps its weights.

    Warns:
        UserWarning: if there is no spiking layer.

    Raises:
        ValueError: if `rate` is not in (0, 1); or, with `each_neuron`, if a layer's cell has no potential
            ``v`` and threshold, or its weights are not one set for each neuron.

    Source: Mishkin & Matas (2016), *All you need is a good init*, for variances; here for rates. For
    `each_neuron` Rossbroich, Gygax & Zenke (2022), *Fluctuation-driven initialization for spiking neural
    network training*, here from the data.

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
    for name, layer in _spiking_or_warned(net, "rate can be set").items():
        current, below = _reaching(net, layer, inputs)
        if each_neuron:
            current = _evened(name, layer, current, below)
        factor = _factor(layer, current, rate, lengths)
        for parameter in () if below is None else below.parameters(recurse=False):
            parameter.mul_(factor)
        started[name] = _mean(layer(current * factor), lengths).item()
    net.train(training)
    return started


def weight_decay_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser such as AdamW: weights decay, all else does not.

    What has one axis (biases, gains of a normalisation, time constants, thresholds) and delays are not
    weights: a gain that decays has its layer fall silent, and a time constant that does forgets.

    >>> import hibana as hb
    >>> net = nn.Sequential(hb.Linear(4, 8), hb.PLIF(), hb.DelayedLinear(8, 2, max_delay=5))
    >>> [(len(group["params"]), group["weight_decay"]) for group in weight_decay_groups(net, 0.1)]
    [(2, 0.1), (4, 0.0)]
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        groups[parameter.ndim > 1 and name.rpartition(".")[2] != "delay"].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": held, "weight_decay": decays[is_]} for is_, held in groups.items() if held]


def _mean(spikes: Tensor, lengths: Tensor | None) -> Tensor:
    """Over time, batch and neurons."""
    if lengths is None:
        return spikes.mean()
    return spikes[padding.within(lengths, spikes).flatten(2)[..., 0]].mean()


def _factor(layer: nn.Module, current: Tensor, rate: float, lengths: Tensor | None) -> float:
    """What to multiply `current` with for `layer` to fire at `rate`."""
    if not bool((current > 0).any()):
        return 1.0
    low, high = -20.0, 20.0  # base 2
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _mean(layer(current * 2.0**middle), lengths) < rate:
            low = middle
        else:
            high = middle
    return float(2.0**high)


NO_THRESHOLD = 1e30


def _evened(name: str, layer: nn.Module, current: Tensor, below: nn.Module | None) -> Tensor:
    """`current`, and the weights `below`, scaled for each neuron as :func:`scale_to_rate` says."""
    cell = copy.deepcopy(layer.cell)
    if not (isinstance(cell, cells.Cell) and "v" in cell.state_names() and hasattr(cell, "threshold")):
        raise ValueError(f"each_neuron needs cells with a potential v and a threshold, {name!r} has none")
    cell.threshold = NO_THRESHOLD
    potential = record(cell, current)["v"].transpose(0, 2).flatten(1)  # [neurons, ...]
    deviation = potential.std(dim=1)
    driven = deviation > 0
    factor = torch.where(driven, deviation[driven].mean() / deviation, 1.0)
    for parameter in () if below is None else below.parameters(recurse=False):
        if len(parameter) != len(factor):
            raise ValueError(
                f"each_neuron needs weights for each of {len(factor)} neurons of {name!r}, "
                f"got {tuple(parameter.shape)}"
            )
        parameter.mul_(factor.view(-1, *[1] * (parameter.ndim - 1)))
    return current * factor.view(-1, *[1] * (current.ndim - 3))


def _reaching(net: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, nn.Module | None]:
    """The current that reaches `layer` when `net` runs, and the last module with weights called before."""
    called: list[nn.Module] = []
    currents: list[Tensor] = []

    def weighted(module: nn.Module, args: Any) -> None:
        if not currents:
            called.append(module)

    def record_current(module: nn.Module, args: Any) -> None:
        currents.append(args[0])

    inner = set(layer.modules())
    hooks = [
        module.register_forward_pre_hook(weighted)
        for module in net.modules()
        if module not in inner and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    hooks.append(layer.register_forward_pre_hook(record_current))
    try:
        net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not currents:
        raise ValueError("net must call each of its spiking layers, and one was not called")
    return currents[0], called[-1] if called else None
