"""Firing rates of a network: measuring them, and scaling the weights to a rate before training.

A spiking layer that starts silent gets no gradient. A layer that starts far above its target rate is pushed
far below it by the rate penalty. Starting at the target avoids both.
"""

import copy
import warnings
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.compiler import emits_spikes, record
from hibana.compiler.graph.ops import Unsupported
from hibana.nn import layers
from hibana.nn import lengths as padding
from hibana.nn.sparse_linear import SparseLinear


class Activity(dict[str, Tensor]):
    """The spikes ``[T, batch, ...]`` of each spiking layer, by layer name.

    Attributes:
        lengths: lengths ``[batch]`` of samples that are padded to T, whose spikes after the end are zero;
            ``None`` if no sample is padded.
    """

    lengths: Tensor | None = None

    def rates(self) -> dict[str, float]:
        """Returns the spikes per neuron and step of each layer."""
        return {name: _mean_rate(spikes.detach(), self.lengths).item() for name, spikes in self.items()}

    def silent(self) -> dict[str, int]:
        """Returns the number of neurons of each layer that never spiked."""
        return {name: int((~spikes.flatten(0, 1).any(dim=0)).sum()) for name, spikes in self.items()}


def activity(net: nn.Module, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Activity]:
    """Runs `net` and returns its outputs and the spikes of each of its spiking layers.

    Args:
        net: the network, called as ``net(inputs)``.
        inputs: ``[T, batch, ...]``.
        lengths: lengths ``[batch]`` of samples that are padded to T. Spikes after the end are set to zero.

    Warns:
        UserWarning: if the network has no spiking layer.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(50, 20), hb.IF(), nn.Linear(20, 2), hb.LI())
    >>> outputs, spikes = activity(net, torch.rand(10, 4, 50))
    >>> {name: layer.shape for name, layer in spikes.items()}, list(spikes.rates()), list(spikes.silent())
    ({'1': torch.Size([10, 4, 20])}, ['1'], ['1'])
    """
    spikes = Activity()
    spikes.lengths = None if lengths is None else padding.checked(lengths, inputs)

    def store(name: str, module: nn.Module, args: Any, outputs: Tensor) -> None:
        """Stores the spikes of the layer `name`, with zeros after the end of each sample."""
        spikes[name] = padding.masked(outputs, lengths)

    with ExitStack() as hooks:
        for name, module in _spiking_layers_or_warning(net, "spikes are counted").items():
            hooks.enter_context(module.register_forward_hook(partial(store, name)))
        return net(inputs), spikes


def _spiking_layers_or_warning(net: nn.Module, consequence: str) -> dict[str, nn.Module]:
    """Returns :func:`spiking_layers`; warns that no `consequence` if the network has no such layer."""
    layers_by_name = spiking_layers(net)
    if not layers_by_name:
        kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in net.modules()))
        message = f"net has no spiking layer of hibana, so that no {consequence}; its modules are {kinds}"
        warnings.warn(message, stacklevel=3)
    return layers_by_name


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers of `net` that emit spikes, by name: their cell's output is 0 or 1.

    Raises:
        RuntimeError: naming the layer, if its step can't be traced and the cell does not declare its output.
    """
    spiking: dict[str, nn.Module] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, layers.OverTime | layers.Recurrent):
            try:
                if emits_spikes(layer.cell):
                    spiking[name] = layer
            except Unsupported as error:
                raise Unsupported(f"layer {name!r}: {error}") from error
    return spiking


@torch.no_grad()
def scale_to_rate(
    net: nn.Module, inputs: Tensor, rate: float, lengths: Tensor | None = None, *, each_neuron: bool = False
) -> dict[str, float]:
    """Scales the weights before each spiking layer so that it fires at `rate` on `inputs`, first layer first.

    Behind a :class:`hibana.SparseLinear`, `rate` is that of the neurons that have synapses: all spikes of the
    layer are divided by the number of these neurons.

    For the input current ``I`` of a layer, bisection on a logarithmic scale finds the factor ``k`` for which
    ``mean(spikes(k I)) = rate``. Weight and bias of the last module with weights before the layer are
    multiplied by ``k``.

    Args:
        net: the network, called as ``net(inputs)``. Its weights are changed in place; its mode (training or
            evaluation) is the same afterwards.
        inputs: a batch of the training set, ``[T, batch, ...]``.
        rate: spikes per neuron and step, in (0, 1).
        lengths: lengths ``[batch]`` of samples that are padded to T. Steps after the end do not count.
        each_neuron: first equalize the input of the neurons in a layer: scale the weights of each neuron so
            that all potentials ``v`` without a threshold have the same standard deviation over time and
            samples. Without it, neurons with long time constants get little input.

    Returns:
        The rate of each spiking layer after scaling, by name: the mean over all of its neurons. A layer whose
        current is never positive can't fire; its weights are unchanged.

    Warns:
        UserWarning: if there is no spiking layer.

    Raises:
        ValueError: if `rate` is not in (0, 1); or, with `each_neuron`, if a layer's cell has no potential
            ``v`` and threshold, or neurons share weights.

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
    rates = {}
    for name, layer in _spiking_layers_or_warning(net, "rate can be set").items():
        current, weighted = _input_current(net, layer, inputs)
        parameters = [] if weighted is None else list(weighted.parameters(recurse=False))
        if each_neuron:
            current = _equalize(name, layer, current, parameters)
        part = 1.0
        if isinstance(weighted, SparseLinear):
            part = int(weighted.targets.bincount().count_nonzero()) / weighted.out_features
        factor = _rate_factor(layer, current, rate * part, lengths)
        for parameter in parameters:
            parameter.mul_(factor)
        rates[name] = _mean_rate(layer(current * factor), lengths).item()
    net.train(training)
    return rates


def weight_decay_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimizer such as AdamW; only weights decay.

    Delays and parameters with one axis (biases, gains of a normalization, time constants, thresholds) are not
    weights, except the synapses of :class:`hibana.SparseLinear`. Decay of a gain would silence its layer, and
    decay of a time constant would shorten its memory.

    >>> import hibana as hb
    >>> net = nn.Sequential(hb.Linear(4, 8), hb.PLIF(), hb.DelayedLinear(8, 2, max_delay=5))
    >>> [(len(group["params"]), group["weight_decay"]) for group in weight_decay_groups(net, 0.1)]
    [(2, 0.1), (4, 0.0)]
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    synapses = {module.weight for module in net.modules() if isinstance(module, SparseLinear)}
    for name, parameter in net.named_parameters():
        is_weight = parameter.ndim > 1 and name.rpartition(".")[2] != "delay"
        groups[is_weight or parameter in synapses].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [
        {"params": parameters, "weight_decay": decays[is_weight]}
        for is_weight, parameters in groups.items()
        if parameters
    ]


def _mean_rate(spikes: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the mean of `spikes` ``[T, batch, ...]``, without the steps after the end of a sample."""
    if lengths is None:
        return spikes.mean()
    # one boolean [T, batch] for all neurons of a sample
    return spikes[padding.within(lengths, spikes).flatten(2)[..., 0]].mean()


def _rate_factor(layer: nn.Module, current: Tensor, rate: float, lengths: Tensor | None) -> float:
    """Returns the factor of `current` for which `layer` fires at `rate`."""
    if not bool((current > 0).any()):
        return 1.0
    low, high = -20.0, 20.0  # exponents of 2
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _mean_rate(layer(current * 2.0**middle), lengths) < rate:
            low = middle
        else:
            high = middle
    return float(2.0**high)


def _equalize(name: str, layer: nn.Module, current: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Scales current and weights of each neuron so that all potentials have the same standard deviation.

    Args:
        name: name of the layer, for messages.
        layer: a spiking layer.
        current: the input current of the layer, ``[T, batch, neurons, ...]``.
        parameters: weight and bias before the layer, ``[neurons, ...]``; they are changed in place.

    Returns:
        The scaled current.

    Raises:
        ValueError: see :func:`scale_to_rate`.
    """
    cell = copy.deepcopy(layer.cell)
    if not (isinstance(cell, cells.Cell) and "v" in cell.state_names() and hasattr(cell, "threshold")):
        raise ValueError(f"each_neuron needs cells with a potential v and a threshold, {name!r} has none")
    cell.threshold = 1e30  # no potential reaches it
    potential = record(cell, current)["v"].transpose(0, 2).flatten(1)  # [neurons, ...]
    deviation = potential.std(dim=1)
    has_input = deviation > 0
    factor = torch.where(has_input, deviation[has_input].mean() / deviation, 1.0)
    for parameter in parameters:
        if len(parameter) != len(factor):
            raise ValueError(f"each_neuron needs weights for each of {len(factor)} neurons of {name!r}")
        parameter.mul_(factor.view(-1, *[1] * (parameter.ndim - 1)))  # one factor per row of weights
    return current * factor.view(-1, *[1] * (current.ndim - 3))  # broadcasts over [T, batch, neurons, ...]


def _input_current(net: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, nn.Module | None]:
    """Runs `net`; returns the input of `layer` and the last module with weights that was called before it."""
    weighted_modules: list[nn.Module] = []
    currents: list[Tensor] = []

    def record_module(module: nn.Module, args: Any) -> None:
        """Appends `module` to the modules with weights, until the layer is called."""
        if not currents:
            weighted_modules.append(module)

    def record_current(module: nn.Module, args: Any) -> None:
        """Stores the input of the layer."""
        currents.append(args[0])

    inner = set(layer.modules())
    with ExitStack() as hooks:
        for module in net.modules():
            if module not in inner and isinstance(getattr(module, "weight", None), nn.Parameter):
                hooks.enter_context(module.register_forward_pre_hook(record_module))
        hooks.enter_context(layer.register_forward_pre_hook(record_current))
        net(inputs)
    if not currents:
        raise ValueError("net must call each of its spiking layers, and one was not called")
    return currents[0], weighted_modules[-1] if weighted_modules else None
