"""Classifies points of the Yin-Yang figure (yin, yang, dot), trained by exact gradients of spike times.

    python examples/yin_yang.py --seed 0 1 2 3 4

Each of the numbers x, y, 1 - x and 1 - y is one input spike; a smaller number spikes earlier. The fifth input
is a bias. The output neuron that spikes first names the class. The loss depends only on spike times, so a
silent neuron receives no gradient. Therefore a constant bias drives the hidden neurons, and a current late in
the run drives the outputs.

Sources: Kriener, Göltz & Petrovici (2022), The Yin-Yang dataset; Wunderlich & Pehle (2021), Event-based
backpropagation can compute exact gradients for spiking neural networks (the loss, the time constants, the
initial weights of the four inputs).
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training import keep

import hibana as hb

STEP, STEPS = 1.0, 32  # length of a time step in ms, and number of steps
LATEST = 30.0  # time of an input of 1, in ms
TAU_SYNAPSE, TAU = 5.0, 20.0  # in ms
THRESHOLD = TAU / STEP  # for weights of tau dv/dt = -v + i and a threshold of 1, as in the paper
SHARPNESS, PRESSURE, PATIENCE = 0.25, 3e-3, 6.4  # of the loss, see `loss_of`; in ms, without unit, in ms
DRIVE, DRIVE_FROM = 6.0, 20.0  # current into the outputs in units of the threshold, and its start in ms
HIDDEN, BATCH = 120, 32


def yin_yang(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns points ``[count, 2]`` of the figure and their classes ``[count]``, which are balanced."""
    labels = torch.randint(3, (count,), generator=generator)
    points = torch.rand(40 * count, 2, generator=generator, dtype=torch.float64)
    x, y = points.T
    left, right = torch.hypot(x - 0.25, y - 0.5), torch.hypot(x - 0.75, y - 0.5)
    yin = (right <= 0.1) | ((left > 0.1) & (left <= 0.25)) | ((y > 0.5) & (right > 0.25))
    classes = torch.where((left < 0.1) | (right < 0.1), 2, (~yin).long())
    inside = torch.hypot(x - 0.5, y - 0.5) <= 0.5
    indices = torch.empty(count, dtype=torch.long)
    for label in range(3):
        slots = (labels == label).nonzero()[:, 0]
        indices[slots] = (inside & (classes == label)).nonzero()[: len(slots), 0]
    return points[indices].float(), labels


def encoded(points: Tensor) -> Tensor:
    """Encodes x, y, 1 - x and 1 - y as one spike each, and adds the bias: ``[STEPS, points, 5]``.

    The bias is the same in each step. With weight w, the synaptic current of a neuron approaches w, and the
    neuron spikes without other inputs if w > 1.
    """
    times = torch.cat([points, 1 - points], 1) * (LATEST / STEP)
    bias = torch.full([STEPS, len(points), 1], STEP / TAU_SYNAPSE)
    return torch.cat([hb.learn.spikes_at(times, STEPS), bias], 2)


class Drive(nn.Module):
    """Adds a constant current from `DRIVE_FROM` on: outputs with little input spike late instead of never."""

    def __init__(self) -> None:
        super().__init__()
        on = torch.arange(STEPS) * STEP >= DRIVE_FROM
        self.register_buffer("current", (on * (DRIVE * STEP / TAU_SYNAPSE)).view(STEPS, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.current


def network() -> nn.Sequential:
    """Returns two layers whose initial weights let nearly all neurons spike for every input."""
    neuron = hb.learn.SpikeTimeCell(TAU_SYNAPSE / STEP, TAU / STEP, threshold=THRESHOLD)
    layers = [nn.Linear(5, HIDDEN, bias=False), nn.Linear(HIDDEN, 3, bias=False)]
    nn.init.normal_(layers[0].weight[:, :4], 1.5, 0.78)
    nn.init.normal_(layers[0].weight[:, 4], 1.2, 0.4)
    nn.init.normal_(layers[1].weight, 0.5, 0.2)
    return nn.Sequential(layers[0], hb.OverTime(neuron), layers[1], Drive(), hb.OverTime(neuron))


OBJECTIVE = hb.loss.FirstSpike(tau=SHARPNESS / STEP, exact=True)


def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the times t of the first spikes, plus a penalty on a late spike of the class.

        L = -log softmax(-t / SHARPNESS)[class] + PRESSURE (exp(t_class / PATIENCE) - 1)

    The penalty keeps the output of the class early, before the drive begins.
    """
    class_times = hb.loss.first_spike_times(outputs).gather(1, labels[:, None]) * STEP
    return OBJECTIVE(outputs, labels) + PRESSURE * (class_times / PATIENCE).expm1().mean()


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return OBJECTIVE.accuracy(net(inputs), labels).item()


def run(epochs: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Trains one network; returns the result as a JSON row."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 * seed)
    sets = []
    for count in (5000, 5000, 1000):
        points, labels = yin_yang(count, generator)
        sets.append((encoded(points), labels))
    (inputs, labels), validation, test = sets
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, fused=True)
    steps = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        learning_rate,
        steps,
        pct_start=0.1,
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=100,
    )
    history, seconds = [], 0.0
    for epoch in range(epochs):
        start = time.process_time()
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = loss_of(net(inputs[:, batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds += time.process_time() - start
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            history.append(round(accuracy(net, *validation), 4))
    return {
        "task": "yin-yang",
        "hidden": HIDDEN,
        "step": STEP,
        "epochs": epochs,
        "seed": seed,
        "test": round(accuracy(net, *test), 4),
        "validation": history[-1],
        "processor seconds per epoch": round(seconds / epochs, 3),
        "history": history,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--epochs", type=int, default=80)
    options.add_argument("--learning-rate", type=float, default=5e-3)
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--record", type=Path, help="append a JSON line per seed to this file")
    arguments = options.parse_args()
    for seed in arguments.seed:
        row = run(arguments.epochs, arguments.learning_rate, seed)
        print(
            f"seed {seed}: {row['test']:.1%}, {row['processor seconds per epoch']:.2f} s per epoch",
            flush=True,
        )
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
