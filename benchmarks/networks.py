"""Times training steps and inference of networks at several firing rates, compared with a ReLU network.

All contenders have the same weights, the same input spikes and the same code around the neurons: each layer
computes the whole sequence ``[T, batch, ...]`` in one call, which is fastest for all of them. Only the
neurons differ and, for hibana, the layers that work per spike.
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
NO_EVENTS = "this version of hibana has no layers that work per spike"
OURS = ["hibana", "hibana-atan", "hibana-dense"] if EVENTS else ["hibana-dense"]
"""Contenders of hibana: with layers that work per spike, for the surrogates Step and ATan, and with the dense
layers of ``torch.nn``."""


@dataclass(frozen=True)
class Network:
    """Layers for samples of `shape`, and the time steps and batch of a training step."""

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
    """One job per network and firing rate, and one per network that measures the memory at T = 32."""
    job_functions: dict[str, Callable[[], list[Row]]] = {}
    for name in NETWORKS:
        for rate in RATES[1:2] if quick else RATES:
            job_functions[f"networks/{name}/{rate:.0%}"] = partial(_measure_eager, name, rate, quick)
    for name in NETWORKS:
        job_functions[f"networks/cold/{name}"] = partial(_measure_eager, name, 0.05, quick, warm=False)
    for name in NETWORKS:
        job_functions[f"networks/compiled/{name}"] = partial(_measure_compiled, name, 0.05, quick)
    for name in NETWORKS:
        job_functions[f"networks/memory/{name}"] = partial(_measure_memory, name, 2 if quick else 32)
    return job_functions


def build(network: Network, contender: str, weights: Weights) -> nn.Sequential:
    """Builds `network` with the neurons of `contender`, and for hibana also with its layers."""
    net = nn.Sequential()
    for layer in network.layers():
        if isinstance(layer, str):
            net.append(_neuron(contender))
        else:
            net.append(hb.EachStep(layer) if isinstance(layer, nn.Conv2d | nn.MaxPool2d) else layer)
    if weights:
        net.load_state_dict(weights, strict=False)  # a peer's neuron may have further buffers
    if contender in ("hibana", "hibana-atan"):
        hb.events.adopt(net)
    if contender.endswith(peers.COMPILED):
        net.compile(dynamic=False)  # with dynamic sizes the convolutions fail
    return net


def _neuron(contender: str) -> nn.Module:
    """The neurons of `contender`: ReLU, IF of hibana or a peer, or the reference loop."""
    if contender == "relu":
        return nn.ReLU()
    if contender == "reference":
        return _Reference()
    if contender.startswith("hibana"):
        surrogate = hb.surrogate.ATan() if contender == "hibana-atan" else hb.surrogate.Step()
        return hb.IF(1.0, surrogate, detach_reset=True)
    return peers.PEERS[contender.removesuffix(peers.COMPILED)].layer(peers.CASES["step"]).module


class _Reference(nn.Module):
    """The neuron computed by the reference loop, with which the other contenders must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = hb.IFCell(1.0, hb.surrogate.Step(), detach_reset=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return hb.unroll(self.cell, inputs, backend="reference")[0]


def sample(network: Network, rate: float, steps: int) -> tuple[Tensor, Tensor]:
    """Random spikes ``[T, batch, ...]`` with probability `rate` per step, and a class for each sample."""
    generator = torch.Generator().manual_seed(1)
    shape = (steps, network.batch, *network.shape)
    inputs = (torch.rand(shape, generator=generator) < rate).float()
    return inputs, torch.randint(0, 10, (network.batch,), generator=generator)


@torch.no_grad()
def tune_weights(network: Network, rate: float, inputs: Tensor) -> tuple[Weights, list[float]]:
    """Returns weights with which each layer of neurons fires at `rate`, and the rates of the layers.

    The weights are torch's initial weights on a grid. A constant is added to the biases of each layer; it is
    found by bisection.
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
    """Describes how hibana's networks differ from the dense network with the reference loop, or None.

    All sums of the forward pass are exact, so outputs must be equal; gradients must be equal up to rounding.
    """
    outcomes = []
    for name in (*(contender for contender in OURS if contender != "hibana-atan"), "reference"):
        net = build(network, name, weights)
        outputs = net(inputs)
        functional.cross_entropy(outputs.mean(0), targets).backward()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        outcomes.append((outputs.detach(), dict(zip(weights, gradients, strict=True))))
    *ours, (expected, expected_gradients) = outcomes
    for actual, actual_gradients in ours:
        if not torch.equal(actual, expected):
            return f"outputs differ in {int((actual != expected).sum())} of {actual.numel()} places"
        if difference := agreement.gradients_differ(actual_gradients, expected_gradients):
            return difference
    return None


def _measure_eager(name: str, rate: float, quick: bool, warm: bool = True) -> list[Row]:
    usable, _ = peers.available()
    return _measure_contenders(name, rate, list(usable), quick, warm)


def _measure_compiled(name: str, rate: float, quick: bool) -> list[Row]:
    """Times of the networks of peers that recommend ``torch.compile``, compiled by it."""
    if shutil.which("c++") is None:
        return [{"network": name, "contender": "peers", "error": "torch.compile needs a C++ compiler"}]
    usable, _ = peers.available()
    return _measure_contenders(
        name, rate, [peer + peers.COMPILED for peer in peers.COMPILABLE if peer in usable], quick
    )


def _measure_contenders(
    name: str, rate: float, others: list[str], quick: bool, warm: bool = True
) -> list[Row]:
    """Times of all contenders; if `warm`, :func:`hibana.keep_memory` keeps freed memory in the process."""
    if warm:
        hb.keep_memory()
    network = NETWORKS[name]
    inputs, targets = sample(network, rate, network.steps)
    weights, rates = tune_weights(network, rate, inputs)
    columns = {"network": name, "rate": rate, "rates": rates, "heap": "warm" if warm else "cold"}
    difference = disagreement(network, weights, inputs, targets)
    ours = [] if difference else OURS
    rows: list[Row] = [{**columns, "contender": "hibana", "error": difference}] if difference else []
    if not EVENTS:
        rows.append({**columns, "contender": "hibana", "error": NO_EVENTS})
    calls = {"training step": partial(training_step, targets=targets), "inference": inference}
    for kind, call in calls.items():
        nets = {contender: build(network, contender, weights) for contender in ("relu", *ours, *others)}
        passes = {contender: call(net, inputs) for contender, net in nets.items()}
        for contender in [contender for contender in others if contender.endswith(peers.COMPILED)]:
            if reason := _compilation_error(passes[contender]):
                rows.append({**columns, "pass": kind, "contender": contender, "error": reason})
                del nets[contender], passes[contender]
        seconds = measure.rounds(
            passes,
            budget_s=0.5 if quick else {"training step": 35.0, "inference": 15.0}[kind],
            min_rounds=1 if quick else 5,
        )
        rows += [
            {**columns, "pass": kind, "contender": contender, **measure.summary(seconds[contender])}
            for contender in nets
        ]
    return rows


def _compilation_error(call: Callable[[], None]) -> str:
    """The message of the error that ``torch.compile`` raises at the first `call`, or ``""``."""
    try:
        call()
    except Exception as error:  # reported in the table
        return f"torch.compile raised {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def _measure_memory(name: str, steps: int) -> list[Row]:
    """Peak memory of a training step of each contender, each in a new process."""
    network, rate = NETWORKS[name], 0.05
    weights, rates = tune_weights(network, rate, sample(network, rate, steps)[0])
    usable, _ = peers.available()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(weights, path)
        for contender in ("relu", *OURS, *usable):
            peak = measure.in_process("benchmarks.networks", "peak", name, contender, rate, steps, str(path))
            rows.append({"network": name, "steps": steps, "rates": rates, "contender": contender, **peak})
    return rows


def peak(name: str, contender: str, rate: float, steps: int, weights: str) -> dict[str, float]:
    """Peak memory of two training steps, in MB; see ``peak_above_baseline``."""
    network = NETWORKS[name]
    inputs, targets = sample(network, rate, steps)
    net = build(network, contender, torch.load(weights))
    training_step(net, inputs[:2, :2], targets[:2])()  # compiles and loads before the measurement
    return measure.peak_above_baseline(training_step(net, inputs, targets))
