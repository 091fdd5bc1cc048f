"""The report of :func:`hibana.from_ann`: firing rates against activations, and accuracy against time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hibana.compiler import State
from hibana.nn.layers import run

__all__ = ["Batch", "Conversion", "LayerReport", "accuracy_over_time", "batches_of", "report", "sum_outputs"]

Batch = tuple[Tensor, Tensor | None]
"""Inputs ``[N, ...]``, and their classes ``[N]`` or None."""
CHUNK_STEPS = 16
"""Steps that a network runs at a time."""
BATCH_SIZE = 64
"""Samples of a tensor that a network runs at a time."""


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons compared with the activation that it replaces, on the calibration data.

    Attributes:
        name: the layer.
        neurons: the number of neurons.
        threshold: the neurons' threshold, in units of the activation.
        activation: mean activation of the ReLU, in thresholds.
        rate: mean firing rate, spikes per neuron and step.
        error: mean distance of firing rate and activation, in thresholds.
        saturated: fraction of the activations above the threshold, which a rate cannot follow.
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
    """The report of a conversion on the calibration data. ``print`` shows it as a table.

    Attributes:
        layers: one report per layer of neurons.
        ann_accuracy: accuracy of the ReLU network.
        accuracy: accuracy of the spiking network after 1, 2, 4, … T steps.
        labelled: whether accuracy is against labels; else it is against the ReLU network's own classes.
    """

    layers: tuple[LayerReport, ...]
    ann_accuracy: float
    accuracy: dict[int, float]
    labelled: bool

    def __str__(self) -> str:
        """A table with one row per layer, and the accuracies for each number of steps."""
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
    """The fraction of `inputs` that is classified correctly after each of T steps, ``[T]``.

    Args:
        network: the network that :func:`from_ann` returned.
        inputs: ``[N, ...]``, each a constant current.
        labels: the classes, ``[N]``.
        T: the number of steps.
    """
    batches = zip(torch.split(inputs, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
    return sum(_correct_counts(network, x, y, T) for x, y in batches) / len(labels)  # type: ignore[return-value] # tensors


def batches_of(data: Tensor | tuple[Tensor, Tensor] | Iterable[Any]) -> list[Batch]:
    """Calibration data as batches of inputs and labels; raises ValueError if there is no sample."""
    if isinstance(data, Tensor):
        batches: list[Batch] = [(x, None) for x in torch.split(data, BATCH_SIZE)]
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        batches = list(zip(torch.split(x, BATCH_SIZE), torch.split(y, BATCH_SIZE), strict=True))
    else:
        batches = [(batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1]) for batch in data]
    if not batches or any(len(x) == 0 for x, _ in batches):
        raise ValueError("calibration_data must hold at least one sample")
    return batches


@contextmanager
def sum_outputs(
    net: nn.Module, names: Iterable[str], *, over_time: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Sums the outputs of the layers `names` over all calls in the block, and over steps if `over_time`."""
    totals: dict[str, Tensor] = {}
    name_of = {net.get_submodule(name): name for name in names}

    def add(module: nn.Module, args: Any, result: Any) -> None:
        """Adds the outputs of `module`, summed over time, to its total."""
        name, outputs = name_of[module], result[0] if isinstance(result, tuple) else result
        totals[name] = totals.get(name, 0) + (outputs.sum(0) if over_time else outputs)

    with ExitStack() as hooks:
        for module in name_of:
            hooks.enter_context(module.register_forward_hook(add))
        yield totals


def report(
    ann: fx.GraphModule,
    network: fx.GraphModule,
    thresholds: dict[str, float],
    batches: list[Batch],
    steps: int,
) -> Conversion:
    """Compares the ReLU network `ann` with the spiking `network` over `steps` on the calibration data."""
    sums = {name: torch.zeros(4, dtype=torch.float64, device="cpu") for name in thresholds}
    neurons: dict[str, int] = {}
    correct = torch.zeros(steps, dtype=torch.float32, device="cpu")
    ann_correct, samples = 0, 0
    for x, labels in batches:
        with sum_outputs(ann, thresholds) as activations:
            classes = ann(x).flatten(1).argmax(1)
        targets = classes if labels is None else labels
        with sum_outputs(network, thresholds, over_time=True) as spikes:
            correct += _correct_counts(network, x, targets, steps)
        ann_correct += int((classes == targets).sum())
        samples += len(x)
        for name, threshold in thresholds.items():
            activation, rate = activations[name] / threshold, spikes[name] / steps
            neurons[name] = activation[0].numel()
            values = [activation, rate, (activation - rate).abs(), (activation > 1).float()]
            sums[name] += torch.stack([value.double().mean() for value in values]).cpu() * len(x)
    layers = tuple(
        LayerReport(name, neurons[name], threshold, *(sums[name] / samples).tolist())
        for name, threshold in thresholds.items()
    )
    powers = sorted({2**n for n in range(steps.bit_length())} | {steps})
    accuracy = {t: float(correct[t - 1] / samples) for t in powers}
    return Conversion(layers, ann_correct / samples, accuracy, batches[0][1] is not None)


def _correct_counts(network: nn.Module, x: Tensor, classes: Tensor, steps: int) -> Tensor:
    """The number of correctly classified samples after each step, ``[steps]``.

    The network runs `CHUNK_STEPS` steps of the constant current `x` at a time, which bounds its memory.
    """
    state: dict[str, State] | None = None
    counts = []
    for start in range(0, steps, CHUNK_STEPS):
        chunk = min(CHUNK_STEPS, steps - start)
        outputs, state = run(network, x.expand(chunk, *x.shape), state)
        counts.append((outputs.flatten(2).argmax(2) == classes).sum(1))
    return torch.cat(counts).cpu()
