"""Recurrent networks 700 → H → 20: a training step and inference beside torch's own and other libraries'.

The networks that the field trains on speech and gestures. Everybody is given the same spikes, and the spiking
ones the same weights; hibana's network fires at :data:`RATE`, which is the fair case for it: what the dense
products of all others take does not depend on how much fires.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from benchmarks import agreement, measure, peers, recurrent_peers, recurrent_spyx
from benchmarks.recurrent_peers import TAU, Weights
from benchmarks.steps import inference

__all__ = ["OURS", "RATE", "SIZES", "Size", "jobs"]

Row = dict[str, Any]


class Size(NamedTuple):
    """The sequence, the batch and the recurrent neurons of one step of training, and the inputs."""

    steps: int
    batch: int
    neurons: int
    inputs: int = 700


SIZES = {f"{t}x{b}x{h}": Size(t, b, h) for t, b, h in ((100, 64, 128), (100, 128, 512), (250, 64, 1024))}
SIZES["1000x32x256"] = Size(1000, 32, 256)
_QUICK = {"5x4x16": Size(5, 4, 16)}
OURS = {"hibana": hb.surrogate.Step(), "hibana-box": hb.surrogate.Box(), "hibana-atan": hb.surrogate.ATan()}
"""hibana's contenders and their surrogates; without a gradient they are one and the same."""
RATE = 0.045
"""How much of the recurrent neurons fires in a step, after scaling the weights of the input."""
_INPUT_RATE = 0.02
_CLASSES = 20
_GRID = 4096  # weights are multiples of 1/4096: sums of them are exact, in any order


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own: everybody's times at a size, and everybody's memory."""
    found: dict[str, Callable[[], list[Row]]] = {}
    for size in _QUICK if quick else SIZES:
        found[f"recurrent/{size}"] = partial(_times, size, quick)
    for size in _QUICK if quick else SIZES:
        found[f"recurrent/memory/{size}"] = partial(_memory, size)
    return found


def sample(size: Size) -> tuple[Tensor, Tensor]:
    """Spikes of 2% of the inputs in each step, ``[T, batch, inputs]``, and a class for each sequence."""
    generator = torch.Generator().manual_seed(1)
    inputs = (torch.rand(size.steps, size.batch, size.inputs, generator=generator) < _INPUT_RATE).float()
    return inputs, torch.randint(0, _CLASSES, (size.batch,), generator=generator)


def network(weights: Weights, surrogate: hb.surrogate.Surrogate, *, reference: bool = False) -> nn.Module:
    """Hibana's network, or the same through torch's linear layers and the reference loop."""
    linear = nn.Linear if reference else hb.Linear
    neurons, inputs = weights["input"].shape
    cell = hb.LIFCell(tau=TAU, detach_reset=True, surrogate=surrogate)
    backend = "reference" if reference else "auto"
    net = nn.Sequential(
        linear(inputs, neurons, bias=False),
        hb.Recurrent(cell, neurons, backend=backend),
        linear(neurons, _CLASSES, bias=False),
        hb.OverTime(hb.LICell(tau=TAU), backend=backend),
    )
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), weights.values(), strict=True):
            parameter.copy_(value)
    return net


def build(contender: str, weights: Weights) -> recurrent_peers.Built:
    """The network of `contender`, and in one line what its recurrent layer is."""
    if contender in OURS:
        surrogate = OURS[contender]
        net = network(weights, surrogate)
        return recurrent_peers.Built(net, f"hibana.Recurrent, {surrogate!r}")
    return recurrent_peers.BUILD[contender](weights)


def contenders() -> list[str]:
    """Everybody who shares this process: hibana, torch, and the peers that are installed."""
    usable, _ = peers.available()
    there = {*usable, *recurrent_peers.TORCH, "gru-equal"}
    others = [name for name in recurrent_peers.BUILD if name in there]
    return [*OURS, *others]


@torch.no_grad()
def tuned(size: Size, inputs: Tensor) -> tuple[Weights, dict[str, float]]:
    """Weights with which the neurons fire at :data:`RATE`, and where each surrogate lets a gradient through.

    The initial weights of ``torch.nn``, those of the input times one number, by bisection, all on a grid.
    """
    torch.manual_seed(2)
    shapes = {"input": size.inputs, "recurrent": size.neurons}
    initial = {name: nn.Linear(count, size.neurons, bias=False).weight for name, count in shapes.items()}
    initial["readout"] = nn.Linear(size.neurons, _CLASSES, bias=False).weight
    weights = {name: (weight * _GRID).round() / _GRID for name, weight in initial.items()}
    low, high = 0.0, 64.0
    for _ in range(14):
        scale = (low + high) / 2
        weights["input"] = (initial["input"] * scale * _GRID).round() / _GRID
        first, layer, *_ = network(weights, OURS["hibana"]).children()
        low, high = (low, scale) if float(layer(first(inputs)).mean()) > RATE else (scale, high)
    return weights, densities(weights, inputs)


@torch.no_grad()
def densities(weights: Weights, inputs: Tensor) -> dict[str, float]:
    """How much of the neurons fires in a step, and how much of them the surrogate of each of ours sees."""
    cell = hb.LIFCell(tau=TAU)
    current = functional.linear(inputs, weights["input"])
    state = cell.initial_state(current[0])
    counts = dict.fromkeys(("firing", *OURS), 0.0)
    for input_ in current:
        state = cell(input_ + functional.linear(state[-1], weights["recurrent"]), *state)
        counts["firing"] += float(state[-1].mean())
        for name, surrogate in OURS.items():
            counts[name] += float((surrogate.derivative(state[0] - 1.0) != 0).float().mean())
    return {name: count / len(current) for name, count in counts.items()}


def training_step(net: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """Forward, cross entropy of the mean over time, and backward; gradients are let go of first."""

    def call() -> None:
        net.zero_grad()
        functional.cross_entropy(net(inputs).mean(0), targets).backward()

    return call


def disagreement(
    weights: Weights, surrogate: hb.surrogate.Surrogate, inputs: Tensor, targets: Tensor
) -> str | None:
    """What differs between hibana's network and the same through the reference loop, or None."""
    outcomes = []
    for reference in (False, True):
        net = network(weights, surrogate, reference=reference)
        outputs = net(inputs)
        functional.cross_entropy(outputs.mean(0), targets).backward()
        grads = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        outcomes.append((outputs.detach(), dict(zip(weights, grads, strict=True))))
    (got, got_gradients), (wanted, wanted_gradients) = outcomes
    if not torch.equal(got, wanted):
        return f"outputs differ in {int((got != wanted).sum())} of {got.numel()} places"
    return agreement.gradients_differ(got_gradients, wanted_gradients)


def _times(name: str, quick: bool) -> list[Row]:
    hb.keep_memory()
    size = (_QUICK | SIZES)[name]
    inputs, targets = sample(size)
    weights, seen = tuned(size, inputs)
    about = {"size": name, "firing": seen["firing"]}
    red = {who: disagreement(weights, surrogate, inputs, targets) for who, surrogate in OURS.items()}
    rows: list[Row] = [{**about, "contender": who, "error": why} for who, why in red.items() if why]
    names = [who for who in contenders() if not red.get(who)]
    for kind in ("training step", "inference"):
        taking_part = [who for who in names if kind == "training step" or who not in list(OURS)[1:]]
        nets = {who: build(who, weights) for who in taking_part}
        calls = {who: _call(kind, net.module, inputs, targets) for who, net in nets.items()}
        seconds = measure.rounds(
            calls,
            budget_s=0.2 if quick else {"training step": 40.0, "inference": 20.0}[kind],
            at_least=1 if quick else 3,
        )
        for who, net in nets.items():
            row = {**about, "pass": kind, "contender": who, "is": net.described}
            if who in OURS:
                row["window"] = seen[who]
            rows.append({**row, **measure.summary(seconds[who])})
    spyx = recurrent_spyx.measured(*_for_spyx(size), quick)
    return rows + [{"size": name, **row} for row in spyx]


def _for_spyx(size: Size) -> tuple[float, ...]:
    return (*size, _CLASSES, _INPUT_RATE, TAU, torch.get_num_threads())


def _call(kind: str, net: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    return inference(net, inputs) if kind == "inference" else training_step(net, inputs, targets)


def _memory(name: str) -> list[Row]:
    size = (_QUICK | SIZES)[name]
    inputs, targets = sample(size)
    weights, _ = tuned(size, inputs)
    for who in OURS:  # so that no process below compiles: that takes memory too
        training_step(build(who, weights).module, inputs, targets)()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(weights, path)
        for who in contenders():
            peak = measure.in_process("benchmarks.recurrent", "peak", who, list(size), str(path))
            rows.append({"network": name, "contender": who, **peak})
    spyx = recurrent_spyx.memory(*_for_spyx(size))
    return rows + [{"network": name, **row} for row in spyx]


def peak(contender: str, size: list[int], weights: str) -> dict[str, float]:
    """Megabytes that two steps of training take, above what stood before them."""
    inputs, targets = sample(Size(*size))
    net = build(contender, torch.load(weights)).module
    training_step(net, inputs[:2, :2], targets[:2])()  # what is compiled or loaded once is no network's
    return measure.peak_above_baseline(training_step(net, inputs, targets))
