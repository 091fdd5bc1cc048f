"""Each peer's neuron over time, ``[T, ...] -> [T, ...]``, as its documentation has it and as it runs fastest.

A peer is used through its public classes only. Where it lacks a surrogate or a reset, the nearest it has
stands in, and among several as near, the one that was fastest here; what was used is part of every result.
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
"""Ends the name of a peer that is run through ``torch.compile``."""
COMPILABLE = ("spikingjelly", "norse")
"""The peers whose documentation speaks of ``torch.compile``; the others are slower through it."""


@dataclass(frozen=True)
class Case:
    """A neuron to be timed; a leak halves the potential in each step."""

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
    """A peer's neuron over time, and in one line which class with which arguments it is."""

    module: nn.Module
    described: str


@dataclass(frozen=True)
class Peer:
    """A library that is compared with."""

    title: str
    distribution: str
    module: str
    layer: Callable[[Case], Layer]


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be used, and why each of the others can't, by distribution."""
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
            reasons[name] = f"is installed at {version}, wanted {PINS[name]}"
    return usable, reasons


class _SnnTorch(nn.Module):
    """snnTorch's loop: one call of the neuron a step, its membrane potential passed on."""

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
    import snntorch
    from snntorch import surrogate

    name = "atan" if case.surrogate == "ATan" else "heaviside"
    beta = 0.5 if case.leaky else 1.0
    # its delayed reset is detached; without the delay the gradient flows through it
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
    from spikingjelly.activation_based import neuron, surrogate

    # LeakyKReLU and Rect would be Step and Box to the letter, but leave its fused operator: slower
    name = "ATan" if case.surrogate == "ATan" else "PiecewiseQuadratic"
    kind, leak = ("LIFNode", {"tau": 2.0, "decay_input": False}) if case.leaky else ("IFNode", {})
    node = getattr(neuron, kind)(
        **leak,
        surrogate_function=getattr(surrogate, name)(),
        detach_reset=case.detach_reset,
        step_mode="m",
    )
    shown = "".join(f"{key}={value}, " for key, value in leak.items())
    return Layer(
        _SpikingJelly(node),
        f"spikingjelly.activation_based.neuron.{kind}({shown}surrogate_function=surrogate.{name}(), "
        f"detach_reset={case.detach_reset}, step_mode='m')",
    )


class _Norse(nn.Module):
    """Norse's cell lifted over time, from an explicit state: its own would make the reset a leaf."""

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
    import norse.torch as norse

    method = "super" if case.surrogate == "ATan" else "triangle"
    if not case.leaky:
        cell = norse.IAFCell(norse.IAFParameters(method=method))
        shown = f"IAFCell(IAFParameters(method='{method}'))"
        return Layer(_Norse(cell, norse.IAFFeedForwardState), f"norse.torch.Lift({shown})")
    # v/2 + x/2 against a threshold of 1/2 is v/2 + x against 1
    half = torch.tensor(0.5)
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=half, v_th=half, method=method), dt=1.0)
    shown = f"LIFBoxCell(LIFBoxParameters(tau_mem_inv=0.5, v_th=0.5, method='{method}'), dt=1.0)"
    return Layer(_Norse(cell, norse.LIFBoxFeedForwardState), f"norse.torch.Lift({shown})")


class _Sinabs(nn.Module):
    """sinabs' layer; time is its second axis, so the sequence goes in as a batch of one, without a copy."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.layer.reset_states()
        spikes: Tensor = self.layer(inputs[None])[0]
        return spikes


def _sinabs(case: Case) -> Layer:
    from sinabs import activation, layers

    surrogate, shown = {
        "Step": (activation.Heaviside(window=0.0), "Heaviside(window=0.0)"),
        "Box": (activation.Heaviside(window=0.5), "Heaviside(window=0.5)"),
        "ATan": (activation.SingleExponential(), "SingleExponential()"),
    }[case.surrogate]
    # its reset to a value is detached; the gradient flows through its subtraction
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
        f"sinabs.layers.{kind}spike_fn=SingleSpike, reset_fn={reset}(), surrogate_grad_fn={shown})",
    )


PEERS = {
    "snntorch": Peer("snnTorch", "snntorch", "snntorch", _snntorch),
    "spikingjelly": Peer(
        "SpikingJelly", "spikingjelly", "spikingjelly.activation_based.neuron", _spikingjelly
    ),
    "norse": Peer("Norse", "norse", "norse.torch", _norse),
    "sinabs": Peer("sinabs", "sinabs", "sinabs.layers", _sinabs),
}
