"""What a conversion did: firing rates against activations, accuracy against time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hibana.compiler import State
from hibana.nn.layers import run

__all__ = ["Batch", "Conversion", "LayerReport", "accuracy_over_time", "batches_of", "outputs_of", "report"]

Batch = tuple[Tensor, Tensor | None]
STEPS_AT_ONCE = 16
SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons against the activation that it stands for, on the calibration data.

    Attributes:
        name: the layer.
        neurons: how many there are.
        threshold: theirs, in units of the activation.
        activation: mean activation of the ReLU, in thresholds.
        rate: mean firing rate, spikes per neuron and step.
        error: mean distance of firing rate and activation, in thresholds.
        saturated: share of the activations above the threshold, which a rate cannot follow.
    """

    name: str
    neurons: int
    threshold: float
    activation: float
    rate: float
    error: float
    saturated: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion did, on the calibration data. Printed, it is a table.

    Attributes:
        layers: each layer of neurons.
        ann_accuracy: of the ReLU network.
        accuracy: of the spiking network after 1, 2, 4, … T steps.
        labelled: whether accuracy is against labels; else it is against the ReLU network's own classes.
    """

    layers: tuple[LayerReport, ...]
    ann_accuracy: float
    accuracy: dict[int, float]
    labelled: bool

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{'layer':{width}}  neurons  threshold  activation    rate   error  saturated",
            *(
                f"{r.name:{width}}  {r.neurons:7d}  {r.threshold:9.4g}  {r.activation:10.4f}  {r.rate:6.4f}  "
                f"{r.error:6.4f}  {r.saturated:9.2%}"
                for r in self.layers
            ),
            "activation and error in thresholds, rate in spikes per neuron and step",
            "",
            f"accuracy against {'the labels' if self.labelled else 'the classes of the ReLU network'}",
            f"{'ReLU':>6}  {self.ann_accuracy:.2%}",
            *(f"T={steps:<4}  {value:.2%}" for steps, value in self.accuracy.items()),
        ]
        return "\n".join(lines)


@torch.no_grad()
def accuracy_over_time(network: nn.Module, inputs: Tensor, labels: Tensor, T: int) -> Tensor:  # noqa: N803
    """The share of `inputs` in the right class after each of T steps, ``[T]``.

    Args:
        network: what :func:`from_ann` returned.
        inputs: ``[N, ...]``, each a constant current.
        labels: ``[N]``, the classes.
        T: the number of steps.
    """
    right = torch.zeros(T, dtype=torch.float32, device="cpu")
    for x, y in zip(_few(inputs), _few(labels), strict=True):
        steps = torch.cat([_right(part, y) for part in _in_parts(network, x, T)])
        right += steps.cpu()
    return right / len(labels)


def batches_of(data: Tensor | tuple[Tensor, Tensor] | Iterable[Any]) -> list[Batch]:
    """Calibration data as (inputs, labels or nothing), a few samples at a time.

    Raises:
        ValueError: if there is no sample.
    """
    if isinstance(data, Tensor):
        batches: list[Batch] = [(x, None) for x in _few(data)]
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        batches = list(zip(_few(x), _few(y), strict=True))
    else:
        batches = [(batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1]) for batch in data]
    if not batches or any(len(x) == 0 for x, _ in batches):
        raise ValueError("calibration_data must hold at least one sample")
    return batches


def _few(data: Tensor) -> tuple[Tensor, ...]:
    return torch.split(data, SAMPLES_AT_ONCE)


@contextmanager
def outputs_of(
    net: nn.Module, names: Iterable[str], *, over_time: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The sum of what each of the layers `names` returns within it, over calls, and steps if `over_time`."""
    totals: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: Any, result: Any) -> None:
            outputs = result[0] if isinstance(result, tuple) else result
            totals[name] = totals.get(name, 0) + (outputs.sum(0) if over_time else outputs)

        return add

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(net.get_submodule(name).register_forward_hook(hook(name)).remove)
        yield totals


def report(
    traced: fx.GraphModule,
    network: fx.GraphModule,
    thresholds: dict[str, float],
    batches: list[Batch],
    steps: int,
) -> Conversion:
    """Runs both networks on the calibration data and compares them, layer by layer and step by step."""
    points = sorted({2**n for n in range(steps.bit_length())} | {steps})
    sums = {name: torch.zeros(4, dtype=torch.float64, device="cpu") for name in thresholds}
    neurons: dict[str, int] = {}
    right = torch.zeros(steps, dtype=torch.float32, device="cpu")
    right_ann, samples = 0, 0
    for x, labels in batches:
        with outputs_of(traced, thresholds) as activations:
            classes = traced(x).flatten(1).argmax(1)
        wanted = classes if labels is None else labels
        with outputs_of(network, thresholds, over_time=True) as spikes:
            right += torch.cat([_right(part, wanted) for part in _in_parts(network, x, steps)]).cpu()
        right_ann += int((classes == wanted).sum())
        samples += len(x)
        for name, threshold in thresholds.items():
            activation, rate = activations[name] / threshold, spikes[name] / steps
            neurons[name] = activation[0].numel()
            means = [activation, rate, (activation - rate).abs(), (activation > 1).float()]
            sums[name] += torch.stack([m.double().mean() for m in means]).cpu() * len(x)
    layers = tuple(
        LayerReport(name, neurons[name], threshold, *(sums[name] / samples).tolist())
        for name, threshold in thresholds.items()
    )
    accuracy = {t: float(right[t - 1] / samples) for t in points}
    return Conversion(layers, right_ann / samples, accuracy, batches[0][1] is not None)


def _right(outputs: Tensor, wanted: Tensor) -> Tensor:
    """How many samples have their largest output at the class wanted, at each step of ``[T, batch, ...]``."""
    return (outputs.flatten(2).argmax(2) == wanted).sum(1)


def _in_parts(network: nn.Module, x: Tensor, steps: int) -> Iterator[Tensor]:
    """What `network` returns for a constant current, a few steps at a time, so that memory stays small."""
    state: dict[str, State] | None = None
    for begun in range(0, steps, STEPS_AT_ONCE):
        part = min(STEPS_AT_ONCE, steps - begun)
        outputs, state = run(network, x.expand(part, *x.shape), state)
        yield outputs
