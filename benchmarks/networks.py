"""Whole networks at a given firing rate: a step of training and inference beside the same ReLU network.

Every contender has the same weights, the same input spikes and the same code around its neurons: layer by
layer over ``[T, batch, ...]``, the products of all time steps in one call, which is how each of them runs
fastest. What differs is the neuron and, for hibana, the layers whose work follows the spikes.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from benchmarks import agreement, measure, peers
from benchmarks.steps import inference, training_step

__all__ = ["EVENTS", "NETWORKS", "NO_EVENTS", "Network", "jobs"]

Row = dict[str, Any]
Weights = dict[str, Tensor]
RATES = (0.02, 0.05, 0.10, 0.50)
_GRID = 4096  # weights are multiples of 1/4096: sums of them are exact, in any order
Layer = nn.Module | Literal["neuron"]

EVENTS = hasattr(hb, "events")
NO_EVENTS = "this version has no layers whose work follows the spikes"
OURS = ["hibana", "hibana-atan", "hibana-dense"] if EVENTS else ["hibana-dense"]
"""hibana with its own layers, by surrogate (``Step`` first), and with the dense ones of ``torch.nn``."""


@dataclass(frozen=True)
class Network:
    """Layers between an input of `shape` and the readout, and the sequence and batch of one step."""

    title: str
    shape: tuple[int, ...]
    steps: int
    batch: int
    layers: Callable[[], list[Layer]]


def _mlp() -> list[Layer]:
    return [nn.Linear(784, 512), "neuron", nn.Linear(512, 512), "neuron", nn.Linear(512, 10)]


def _conv() -> list[Layer]:
    first: list[Layer] = [nn.Conv2d(1, 32, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    second: list[Layer] = [nn.Conv2d(32, 64, 3, padding=1), "neuron", nn.MaxPool2d(2)]
    return [*first, *second, nn.Flatten(2), nn.Linear(64 * 7 * 7, 512), "neuron", nn.Linear(512, 10)]


NETWORKS = {
    "mlp": Network("MLP 784-512-512-10, T=25, B=128", (784,), 25, 128, _mlp),
    "conv": Network("conv net 32c3-64c3-512-10, T=8, B=64", (1, 28, 28), 8, 64, _conv),
}


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own: a network at a firing rate, and the memory of each at T = 32."""
    found: dict[str, Callable[[], list[Row]]] = {}
    for name in NETWORKS:
        for rate in RATES[1:2] if quick else RATES:
            found[f"networks/{name}/{rate:.0%}"] = partial(_times, name, rate, quick)
    for name in NETWORKS:
        found[f"networks/cold/{name}"] = partial(_times, name, 0.05, quick, warm=False)
    for name in NETWORKS:
        found[f"networks/compiled/{name}"] = partial(_compiled, name, 0.05, quick)
    for name in NETWORKS:
        found[f"networks/memory/{name}"] = partial(_memory, name, 2 if quick else 32)
    return found


def build(network: Network, contender: str, weights: Weights) -> nn.Sequential:
    """`network` with the neurons of `contender`, and of hibana with its layers too."""
    net = nn.Sequential()
    for layer in network.layers():
        if isinstance(layer, str):
            net.append(_neuron(contender))
        else:
            net.append(hb.EachStep(layer) if isinstance(layer, nn.Conv2d | nn.MaxPool2d) else layer)
    if weights:
        net.load_state_dict(weights, strict=False)  # a peer's neuron has buffers of its own
    if contender in ("hibana", "hibana-atan"):
        hb.events.adopt(net)
    if contender.endswith(peers.COMPILED):
        net.compile(dynamic=False)  # every size is met once; with sizes unknown the convolutions fail
    return net


def _neuron(contender: str) -> nn.Module:
    if contender == "relu":
        return nn.ReLU()
    if contender == "reference":
        return _Reference()
    if contender.startswith("hibana"):
        surrogate = hb.surrogate.ATan() if contender == "hibana-atan" else hb.surrogate.Step()
        return hb.IF(1.0, surrogate, detach_reset=True)
    return peers.PEERS[contender.removesuffix(peers.COMPILED)].layer(peers.CASES["step"]).module


class _Reference(nn.Module):
    """The same neuron through the reference loop: what the gate compares with."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = hb.IFCell(1.0, hb.surrogate.Step(), detach_reset=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return hb.unroll(self.cell, inputs, backend="reference")[0]


def sample(network: Network, rate: float, steps: int) -> tuple[Tensor, Tensor]:
    """Poisson spikes at `rate` per step, ``[T, batch, ...]``, and a class for each image."""
    generator = torch.Generator().manual_seed(1)
    shape = (steps, network.batch, *network.shape)
    inputs = (torch.rand(shape, generator=generator) < rate).float()
    return inputs, torch.randint(0, 10, (network.batch,), generator=generator)


@torch.no_grad()
def tuned(network: Network, rate: float, inputs: Tensor) -> tuple[Weights, list[float]]:
    """Weights with which each layer of neurons fires at `rate`, and the rates that they reach.

    The initial weights of ``torch.nn``, and on top of the biases of each layer one current, by bisection.
    """
    torch.manual_seed(2)
    net = build(network, "hibana-dense", {})
    for parameter in net.parameters():
        parameter.copy_((parameter * _GRID).round() / _GRID)
    rates = []
    bias = torch.zeros(())
    for layer in net:
        if isinstance(layer, hb.OverTime):
            low, high = -1.0, 2.0
            for _ in range(13):
                current = round((low + high) / 2 * _GRID) / _GRID
                spikes = layer(inputs + current)
                low, high = (low, current) if spikes.mean() > rate else (current, high)
            bias += current
            rates.append(float(spikes.mean()))
            inputs = spikes
        else:
            inner = layer.module if isinstance(layer, hb.EachStep) else layer
            bias = inner.bias if isinstance(inner, nn.Linear | nn.Conv2d) else bias
            inputs = layer(inputs)
    return {name: value.clone() for name, value in net.state_dict().items()}, rates


def disagreement(network: Network, weights: Weights, inputs: Tensor, targets: Tensor) -> str | None:
    """What differs between hibana's network and the dense one through the reference loop, or None.

    All sums of the forward pass are exact, so outputs must be equal; gradients close.
    """
    outcomes = []
    for name in (*(who for who in OURS if who != "hibana-atan"), "reference"):
        net = build(network, name, weights)
        outputs = net(inputs)
        functional.cross_entropy(outputs.mean(0), targets).backward()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        outcomes.append((outputs.detach(), dict(zip(weights, gradients, strict=True))))
    *ours, (wanted, wanted_gradients) = outcomes
    for got, got_gradients in ours:
        if not torch.equal(got, wanted):
            return f"outputs differ in {int((got != wanted).sum())} of {got.numel()} places"
        if red := agreement.gradients_differ(got_gradients, wanted_gradients):
            return red
    return None


def _times(name: str, rate: float, quick: bool, warm: bool = True) -> list[Row]:
    usable, _ = peers.available()
    return _compared(name, rate, list(usable), quick, warm)


def _compiled(name: str, rate: float, quick: bool) -> list[Row]:
    """The peers that speak of ``torch.compile`` in their documentation, the whole network through it."""
    if shutil.which("c++") is None:
        return [{"network": name, "contender": "peers", "error": "torch.compile needs a C++ compiler"}]
    usable, _ = peers.available()
    return _compared(
        name, rate, [peer + peers.COMPILED for peer in peers.COMPILABLE if peer in usable], quick
    )


def _compared(name: str, rate: float, others: list[str], quick: bool, warm: bool = True) -> list[Row]:
    """Everybody's times; `warm` keeps freed memory in the process, as :func:`hibana.keep_memory` does."""
    if warm:
        hb.keep_memory()
    network = NETWORKS[name]
    inputs, targets = sample(network, rate, network.steps)
    weights, rates = tuned(network, rate, inputs)
    about = {"network": name, "rate": rate, "rates": rates, "heap": "warm" if warm else "cold"}
    red = disagreement(network, weights, inputs, targets)
    ours = [] if red else OURS
    rows: list[Row] = [{**about, "contender": "hibana", "error": red}] if red else []
    if not EVENTS:
        rows.append({**about, "contender": "hibana", "error": NO_EVENTS})
    calls = {"training step": partial(training_step, targets=targets), "inference": inference}
    for kind, call in calls.items():
        nets = {who: build(network, who, weights) for who in ("relu", *ours, *others)}
        passes = {who: call(net, inputs) for who, net in nets.items()}
        for who in [who for who in others if who.endswith(peers.COMPILED)]:
            if reason := _not_compiled(passes[who]):
                rows.append({**about, "pass": kind, "contender": who, "error": reason})
                del nets[who], passes[who]
        seconds = measure.rounds(
            passes,
            budget_s=0.5 if quick else {"training step": 35.0, "inference": 15.0}[kind],
            at_least=1 if quick else 5,
        )
        rows += [{**about, "pass": kind, "contender": who, **measure.summary(seconds[who])} for who in nets]
    return rows


def _not_compiled(call: Callable[[], None]) -> str:
    """What ``torch.compile`` raises at the first `call`, or ``""``: its errors are of many classes."""
    try:
        call()
    except Exception as error:  # reported in the table
        return f"torch.compile raised {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def _memory(name: str, steps: int) -> list[Row]:
    network, rate = NETWORKS[name], 0.05
    weights, rates = tuned(network, rate, sample(network, rate, steps)[0])
    usable, _ = peers.available()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(weights, path)
        for who in ("relu", *OURS, *usable):
            peak = measure.in_process("benchmarks.networks", "peak", name, who, rate, steps, str(path))
            rows.append({"network": name, "steps": steps, "rates": rates, "contender": who, **peak})
    return rows


def peak(name: str, contender: str, rate: float, steps: int, weights: str) -> dict[str, float]:
    """Megabytes that two steps of training take, above what stood before them."""
    network = NETWORKS[name]
    inputs, targets = sample(network, rate, steps)
    net = build(network, contender, torch.load(weights))
    training_step(net, inputs[:2, :2], targets[:2])()  # what is compiled or loaded once is no network's
    return measure.peak_above_baseline(training_step(net, inputs, targets))
