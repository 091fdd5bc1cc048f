"""Times training steps and inference of recurrent networks 700 → H → 20 of hibana, torch and other libraries.

Such networks are trained on speech and gestures. All contenders get the same input spikes, and the spiking
networks have the same weights. hibana's time depends on the firing rate, which is set to :data:`RATE`; the
others multiply dense matrices, and their time does not depend on it.
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
    """Time steps, batch, recurrent neurons and input features of a training step."""

    steps: int
    batch: int
    neurons: int
    inputs: int = 700


SIZES = {f"{t}x{b}x{h}": Size(t, b, h) for t, b, h in ((100, 64, 128), (100, 128, 512), (250, 64, 1024))}
SIZES["1000x32x256"] = Size(1000, 32, 256)
_QUICK = {"5x4x16": Size(5, 4, 16)}
OURS = {"hibana": hb.surrogate.Step(), "hibana-box": hb.surrogate.Box(), "hibana-atan": hb.surrogate.ATan()}
"""hibana's contenders and their surrogates. In inference they compute the same."""
RATE = 0.045
"""Fraction of the recurrent neurons that fires in a step; the input weights are scaled to reach it."""
_INPUT_RATE = 0.02
_CLASSES = 20
_GRID = 4096  # weights are multiples of 1/4096: sums of them are exact, in any order


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """Two jobs per size: the times and the memory of all contenders."""
    job_functions: dict[str, Callable[[], list[Row]]] = {}
    for size in _QUICK if quick else SIZES:
        job_functions[f"recurrent/{size}"] = partial(_measure_times, size, quick)
    for size in _QUICK if quick else SIZES:
        job_functions[f"recurrent/memory/{size}"] = partial(_measure_memory, size)
    return job_functions


def sample(size: Size) -> tuple[Tensor, Tensor]:
    """Spikes of 2% of the inputs in each step, ``[T, batch, inputs]``, and a class for each sequence."""
    generator = torch.Generator().manual_seed(1)
    inputs = (torch.rand(size.steps, size.batch, size.inputs, generator=generator) < _INPUT_RATE).float()
    return inputs, torch.randint(0, _CLASSES, (size.batch,), generator=generator)


def network(weights: Weights, surrogate: hb.surrogate.Surrogate, *, reference: bool = False) -> nn.Module:
    """Builds hibana's network, or with `reference` one of torch's linear layers and the reference loop."""
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
    """The network of `contender`, and its recurrent layer as one line of code."""
    if contender in OURS:
        surrogate = OURS[contender]
        net = network(weights, surrogate)
        return recurrent_peers.Built(net, f"hibana.Recurrent, {surrogate!r}")
    return recurrent_peers.BUILD[contender](weights)


def contenders() -> list[str]:
    """Names of the contenders that run in this process: hibana, torch, and the installed peers."""
    usable, _ = peers.available()
    usable_names = {*usable, *recurrent_peers.TORCH, "gru-equal"}
    others = [name for name in recurrent_peers.BUILD if name in usable_names]
    return [*OURS, *others]


@torch.no_grad()
def tune_weights(size: Size, inputs: Tensor) -> tuple[Weights, dict[str, float]]:
    """Returns weights with which the neurons fire at :data:`RATE`, and the fractions of :func:`densities`.

    The weights are torch's initial weights on a grid; those of the input are scaled by a factor that is found
    by bisection.
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
    """Fractions of neurons that fire (``"firing"``), and by contender with a nonzero surrogate gradient."""
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
    """Returns a function that clears the gradients and runs forward, cross entropy and backward.

    The loss is the cross entropy of the mean output over time.
    """

    def call() -> None:
        net.zero_grad()
        functional.cross_entropy(net(inputs).mean(0), targets).backward()

    return call


def disagreement(
    weights: Weights, surrogate: hb.surrogate.Surrogate, inputs: Tensor, targets: Tensor
) -> str | None:
    """Describes how hibana's network differs from the same network with the reference loop, or None."""
    outcomes = []
    for reference in (False, True):
        net = network(weights, surrogate, reference=reference)
        outputs = net(inputs)
        functional.cross_entropy(outputs.mean(0), targets).backward()
        grads = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        outcomes.append((outputs.detach(), dict(zip(weights, grads, strict=True))))
    (actual, actual_gradients), (expected, expected_gradients) = outcomes
    if not torch.equal(actual, expected):
        return f"outputs differ in {int((actual != expected).sum())} of {actual.numel()} places"
    return agreement.gradients_differ(actual_gradients, expected_gradients)


def _measure_times(name: str, quick: bool) -> list[Row]:
    """Rows of one job: times of all contenders at a size, in training and inference."""
    hb.keep_memory()
    size = (_QUICK | SIZES)[name]
    inputs, targets = sample(size)
    weights, fractions = tune_weights(size, inputs)
    columns = {"size": name, "firing": fractions["firing"]}
    differences = {
        contender: disagreement(weights, surrogate, inputs, targets) for contender, surrogate in OURS.items()
    }
    rows: list[Row] = [
        {**columns, "contender": contender, "error": difference}
        for contender, difference in differences.items()
        if difference
    ]
    names = [contender for contender in contenders() if not differences.get(contender)]
    for kind in ("training step", "inference"):
        timed_contenders = [
            contender for contender in names if kind == "training step" or contender not in list(OURS)[1:]
        ]
        nets = {contender: build(contender, weights) for contender in timed_contenders}
        calls = {contender: _timed_call(kind, net.module, inputs, targets) for contender, net in nets.items()}
        seconds = measure.rounds(
            calls,
            budget_s=0.2 if quick else {"training step": 40.0, "inference": 20.0}[kind],
            min_rounds=1 if quick else 3,
        )
        for contender, net in nets.items():
            row = {**columns, "pass": kind, "contender": contender, "is": net.description}
            if contender in OURS:
                row["window"] = fractions[contender]
            rows.append({**row, **measure.summary(seconds[contender])})
    spyx = recurrent_spyx.measure_times(*_spyx_arguments(size), quick)
    return rows + [{"size": name, **row} for row in spyx]


def _spyx_arguments(size: Size) -> tuple[float, ...]:
    return (*size, _CLASSES, _INPUT_RATE, TAU, torch.get_num_threads())


def _timed_call(kind: str, net: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    return inference(net, inputs) if kind == "inference" else training_step(net, inputs, targets)


def _measure_memory(name: str) -> list[Row]:
    """Rows of one job: peak memory of each contender, each in a new process."""
    size = (_QUICK | SIZES)[name]
    inputs, targets = sample(size)
    weights, _ = tune_weights(size, inputs)
    for contender in OURS:  # fills the kernel cache, because compiling takes memory too
        training_step(build(contender, weights).module, inputs, targets)()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(weights, path)
        for contender in contenders():
            peak = measure.in_process("benchmarks.recurrent", "peak", contender, list(size), str(path))
            rows.append({"network": name, "contender": contender, **peak})
    spyx = recurrent_spyx.measure_memory(*_spyx_arguments(size))
    return rows + [{"network": name, **row} for row in spyx]


def peak(contender: str, size: list[int], weights: str) -> dict[str, float]:
    """Peak memory of two training steps, in MB; see ``peak_above_baseline``."""
    inputs, targets = sample(Size(*size))
    net = build(contender, torch.load(weights)).module
    training_step(net, inputs[:2, :2], targets[:2])()  # compiles and loads before the measurement
    return measure.peak_above_baseline(training_step(net, inputs, targets))
