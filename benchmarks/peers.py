"""Neurons of other libraries (peers) over time, ``[T, ...] -> [T, ...]``.

Each peer is used through its public classes, as its documentation shows, in its fastest form. If a peer lacks
a surrogate or a reset, the most similar one is used, and the fastest of several that are equally similar. The
results contain the code of each neuron.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.environment import PINS

__all__ = ["CASES", "COMPILABLE", "COMPILED", "PEERS", "Case", "Layer", "Peer", "available"]


COMPILED = "+compile"
"""Suffix of the names of peers that are compiled with ``torch.compile``."""
COMPILABLE = ("spikingjelly", "norse")
"""Peers whose documentation recommends ``torch.compile``; it makes the others slower."""


@dataclass(frozen=True)
class Case:
    """A neuron that is timed. If `leaky`, each step halves the potential."""

    title: str
    surrogate: Literal["Step", "Box", "ATan"]
    detach_reset: bool = True
    leaky: bool = False


CASES = {
    "step": Case("IF, detached reset, Step", "Step"),
    "box": Case("IF, detached reset, Box", "Box"),
    "through-reset": Case("IF, gradient through the reset, Step", "Step", detach_reset=False),
    "atan": Case("IF, detached reset, ATan", "ATan"),
    "lif": Case("LIF, detached reset, Step", "Step", leaky=True),
}


@dataclass(frozen=True)
class Layer:
    """A peer's neuron over time, and its class and arguments as one line of code."""

    module: nn.Module
    description: str


@dataclass(frozen=True)
class Peer:
    """Another library: its title, its distribution and module, and a function that builds its neuron."""

    title: str
    distribution: str
    module: str
    layer: Callable[[Case], Layer]


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """The usable peers, and the reasons why the others are not usable, by distribution."""
    usable, reasons = {}, {}
    for name, peer in PEERS.items():
        try:
            importlib.import_module(peer.module)
            version = metadata.version(name)
        except Exception as error:
            reasons[name] = f"cannot be imported: {type(error).__name__}: {error}"
            continue
        if version == PINS[name]:
            usable[name] = peer
        else:
            reasons[name] = f"version {version} is installed, but {PINS[name]} is required"
    return usable, reasons


class _SnnTorch(nn.Module):
    """snnTorch's loop: one call of the neuron per step, which passes on the membrane potential."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, inputs: Tensor) -> Tensor:
        membrane = torch.zeros_like(inputs[0])
        spikes = []
        for input_ in inputs:
            spike, membrane = self.neuron(input_, membrane)
            spikes.append(spike)
        return torch.stack(spikes)


def _snntorch(case: Case) -> Layer:
    """The neuron of snnTorch for `case`."""
    import snntorch
    from snntorch import surrogate

    name = "atan" if case.surrogate == "ATan" else "heaviside"
    beta = 0.5 if case.leaky else 1.0
    # snnTorch detaches a delayed reset; without the delay the gradient flows through the reset
    neuron = snntorch.Leaky(
        beta=beta,
        spike_grad=getattr(surrogate, name)(),
        reset_mechanism="zero",
        reset_delay=case.detach_reset,
    )
    return Layer(
        _SnnTorch(neuron),
        f"snntorch.Leaky(beta={beta}, spike_grad=surrogate.{name}(), reset_mechanism='zero', "
        f"reset_delay={case.detach_reset}), a loop over time",
    )


class _SpikingJelly(nn.Module):
    """SpikingJelly's multi-step neuron, reset before each sequence."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron: Any = neuron

    def forward(self, inputs: Tensor) -> Tensor:
        self.neuron.reset()
        spikes: Tensor = self.neuron(inputs)
        return spikes


def _spikingjelly(case: Case) -> Layer:
    """SpikingJelly's neuron for `case`."""
    from spikingjelly.activation_based import neuron, surrogate

    # LeakyKReLU and Rect are exactly Step and Box, but slower: the fused operator does not support them
    name = "ATan" if case.surrogate == "ATan" else "PiecewiseQuadratic"
    kind, leak = ("LIFNode", {"tau": 2.0, "decay_input": False}) if case.leaky else ("IFNode", {})
    node = getattr(neuron, kind)(
        **leak,
        surrogate_function=getattr(surrogate, name)(),
        detach_reset=case.detach_reset,
        step_mode="m",
    )
    arguments_text = "".join(f"{key}={value}, " for key, value in leak.items())
    return Layer(
        _SpikingJelly(node),
        f"spikingjelly.activation_based.neuron.{kind}({arguments_text}surrogate_function=surrogate.{name}(), "
        f"detach_reset={case.detach_reset}, step_mode='m')",
    )


class _Norse(nn.Module):
    """Norse's cell lifted over time, with an explicit initial state.

    Norse's default state would be a leaf that requires a gradient.
    """

    def __init__(self, cell: nn.Module, state: Callable[..., Any]) -> None:
        super().__init__()
        import norse.torch as norse

        self.layer = norse.Lift(cell)
        self.state = state

    def forward(self, inputs: Tensor) -> Tensor:
        spikes: Tensor
        spikes, _ = self.layer((inputs, self.state(v=torch.zeros_like(inputs[0]))))
        return spikes


def _norse(case: Case) -> Layer:
    """Norse's neuron for `case`."""
    import norse.torch as norse

    method = "super" if case.surrogate == "ATan" else "triangle"
    if not case.leaky:
        cell = norse.IAFCell(norse.IAFParameters(method=method))
        arguments_text = f"IAFCell(IAFParameters(method='{method}'))"
        return Layer(_Norse(cell, norse.IAFFeedForwardState), f"norse.torch.Lift({arguments_text})")
    # v/2 + x/2 against a threshold of 1/2 is v/2 + x against 1
    half = torch.tensor(0.5)
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=half, v_th=half, method=method), dt=1.0)
    arguments_text = f"LIFBoxCell(LIFBoxParameters(tau_mem_inv=0.5, v_th=0.5, method='{method}'), dt=1.0)"
    return Layer(_Norse(cell, norse.LIFBoxFeedForwardState), f"norse.torch.Lift({arguments_text})")


class _Sinabs(nn.Module):
    """A layer of sinabs, whose second axis is time; the sequence becomes a batch of one, without a copy."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.layer.reset_states()
        spikes: Tensor = self.layer(inputs[None])[0]
        return spikes


def _sinabs(case: Case) -> Layer:
    """The neuron of sinabs for `case`."""
    from sinabs import activation, layers

    surrogate, arguments_text = {
        "Step": (activation.Heaviside(window=0.0), "Heaviside(window=0.0)"),
        "Box": (activation.Heaviside(window=0.5), "Heaviside(window=0.5)"),
        "ATan": (activation.SingleExponential(), "SingleExponential()"),
    }[case.surrogate]
    # sinabs detaches a reset to a value; the gradient flows through a reset by subtraction
    reset = "MembraneReset" if case.detach_reset else "MembraneSubtract"
    arguments = {
        "spike_fn": activation.SingleSpike,
        "reset_fn": getattr(activation, reset)(),
        "surrogate_grad_fn": surrogate,
    }
    if case.leaky:
        layer = layers.LIF(tau_mem=1 / math.log(2), norm_input=False, **arguments)
        kind = "LIF(tau_mem=1/log(2), norm_input=False, "
    else:
        layer = layers.IAF(**arguments)
        kind = "IAF("
    return Layer(
        _Sinabs(layer),
        f"sinabs.layers.{kind}spike_fn=SingleSpike, reset_fn={reset}(), surrogate_grad_fn={arguments_text})",
    )


PEERS = {
    "snntorch": Peer("snnTorch", "snntorch", "snntorch", _snntorch),
    "spikingjelly": Peer(
        "SpikingJelly", "spikingjelly", "spikingjelly.activation_based.neuron", _spikingjelly
    ),
    "norse": Peer("Norse", "norse", "norse.torch", _norse),
    "sinabs": Peer("sinabs", "sinabs", "sinabs.layers", _sinabs),
}
