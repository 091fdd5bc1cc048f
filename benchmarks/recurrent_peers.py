"""Recurrent networks of torch and of other libraries, ``[T, batch, inputs] -> [T, batch, classes]``.

All networks have the same linear layers around the recurrent layer, and the spiking networks also the same
leaky readout; only the recurrent layer differs. Each library's layer is used as its documentation shows, with
a reset to zero and the surrogate that is most similar to a window.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hibana as hb

__all__ = ["BUILD", "TAU", "TORCH", "Built", "Weights"]

Weights = dict[str, Tensor]
"""Matrices ``input`` [H, inputs], ``recurrent`` [H, H] and ``readout`` [classes, H], in this order."""
TAU = 20.0
"""Time constant of the membranes, in steps."""
_BETA = 1 - 1 / TAU
TORCH = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class Built(NamedTuple):
    """A network, and its recurrent layer as one line of code."""

    module: nn.Module
    description: str


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _build_network(
    weights: Weights, layer: nn.Module, description: str, *, has_inputs: bool = False
) -> Built:
    """Puts `layer` between input weights, unless `has_inputs`: it contains them, and readout."""
    first = [] if has_inputs else [_linear(weights["input"])]
    readout = [_linear(weights["readout"]), hb.LI(tau=TAU)]
    return Built(nn.Sequential(*first, layer, *readout), description)


class _Outputs(nn.Module):
    """A recurrent layer that returns ``(outputs, state)``, reduced to its outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)[0]
        return outputs


def _torch(kind: Any, weights: Weights) -> Built:
    """A network with a recurrent layer of torch, with torch's initial weights."""
    neurons, inputs = weights["input"].shape
    net = nn.Sequential(_Outputs(kind(inputs, neurons)), _linear(weights["readout"]))
    return Built(net, f"torch.nn.{kind.__name__}(inputs, H)")


class _SnnTorch(nn.Module):
    """snnTorch's loop: one call of the neuron per step, which passes on the spikes and the potential."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, inputs: Tensor) -> Tensor:
        spike, membrane = torch.zeros_like(inputs[0]), torch.zeros_like(inputs[0])
        spikes = []
        for input_ in inputs:
            spike, membrane = self.neuron(input_, spike, membrane)
            spikes.append(spike)
        return torch.stack(spikes)


def _snntorch(weights: Weights) -> Built:
    """The network with snnTorch's recurrent layer."""
    import snntorch
    from snntorch import surrogate

    neuron = snntorch.RLeaky(
        beta=_BETA,
        linear_features=len(weights["recurrent"]),
        spike_grad=surrogate.heaviside(),
        reset_mechanism="zero",
    )
    neuron.recurrent = _linear(weights["recurrent"])
    description = f"snntorch.RLeaky(beta={_BETA}, spike_grad=surrogate.heaviside(), reset_mechanism='zero')"
    return _build_network(weights, _SnnTorch(neuron), f"{description}, a loop over time")


class _SpikingJelly(nn.Module):
    """SpikingJelly's container in multi-step mode, reset before each sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.layer)
        spikes: Tensor = self.layer(inputs)
        return spikes


def _spikingjelly(weights: Weights) -> Built:
    """The network with SpikingJelly's recurrent container."""
    from spikingjelly.activation_based import layer, neuron, surrogate

    neurons = len(weights["recurrent"])
    node = neuron.LIFNode(
        tau=TAU,
        decay_input=False,
        surrogate_function=surrogate.PiecewiseQuadratic(),
        detach_reset=True,
    )
    container = layer.LinearRecurrentContainer(node, neurons, neurons, bias=False, step_mode="m")
    with torch.no_grad():  # it multiplies the input concatenated with the previous output
        container.rc.weight.copy_(torch.cat([torch.eye(neurons), weights["recurrent"]], 1))
    description = (
        f"spikingjelly.activation_based.layer.LinearRecurrentContainer(LIFNode(tau={TAU}, decay_input=False, "
        "surrogate_function=PiecewiseQuadratic(), detach_reset=True), H, H, bias=False, step_mode='m')"
    )
    return _build_network(weights, _SpikingJelly(container), description)


def _norse(weights: Weights) -> Built:
    """The network with Norse's recurrent layer, which contains the input weights."""
    import norse.torch as norse

    neurons, inputs = weights["input"].shape
    one = torch.tensor(1.0)  # the default, 100, makes the gradient NaN after some steps
    parameters = norse.LIFParameters(method="triangle", alpha=one)
    layer = norse.LIFRecurrent(inputs, neurons, parameters, autapses=True)
    with torch.no_grad():
        layer.input_weights.copy_(weights["input"])
        layer.recurrent_weights.copy_(weights["recurrent"])
    arguments_text = "LIFParameters(method='triangle', alpha=1)"
    description = f"norse.torch.LIFRecurrent(inputs, H, {arguments_text}, autapses=True)"
    return _build_network(weights, _Outputs(layer), description, has_inputs=True)


class _Sinabs(nn.Module):
    """A layer of sinabs, whose second axis is time; the sequence becomes a batch of one, without a copy."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, inputs: Tensor) -> Tensor:
        self.layer.reset_states()
        spikes: Tensor = self.layer(inputs[None])[0]
        return spikes


def _sinabs(weights: Weights) -> Built:
    """The network with sinabs' recurrent layer."""
    from sinabs import activation, layers

    layer = layers.LIFRecurrent(
        tau_mem=-1 / math.log(_BETA),
        rec_connect=_linear(weights["recurrent"]),
        spike_fn=activation.SingleSpike,
        reset_fn=activation.MembraneReset(),
        surrogate_grad_fn=activation.Heaviside(window=0.5),
        norm_input=False,
    )
    layer.tau_mem.requires_grad_(False)
    description = (
        "sinabs.layers.LIFRecurrent(tau_mem=-1/log(0.95), nn.Linear(H, H), spike_fn=SingleSpike, "
        "reset_fn=MembraneReset(), surrogate_grad_fn=Heaviside(window=0.5), norm_input=False)"
    )
    return _build_network(weights, _Sinabs(layer), description)


def _gru_of_equal_parameters(weights: Weights) -> Built:
    """A network with a GRU that has as many parameters as the spiking network."""
    inputs = weights["input"].shape[1]
    classes = len(weights["readout"])
    parameter_count = sum(value.numel() for value in weights.values())
    half = (3 * inputs + 6 + classes) / 6  # 3 w^2 + (3 inputs + 6 biases + classes) w = parameter_count
    width = round((half * half + parameter_count / 3) ** 0.5 - half)
    net = nn.Sequential(_Outputs(nn.GRU(inputs, width)), nn.Linear(width, classes, bias=False))
    return Built(net, "torch.nn.GRU(inputs, w), w for as many parameters as the spiking network")


def _torch_builders() -> dict[str, Callable[[Weights], Built]]:
    return {name: lambda weights, kind=kind: _torch(kind, weights) for name, kind in TORCH.items()}


BUILD: dict[str, Callable[[Weights], Built]] = {
    **_torch_builders(),
    "gru-equal": _gru_of_equal_parameters,
    "snntorch": _snntorch,
    "spikingjelly": _spikingjelly,
    "norse": _norse,
    "sinabs": _sinabs,
}
"""Functions that build the networks of all contenders except hibana, by name."""
