"""NeuroBench's two smallest tasks, over files of your own: its metrics of a spiking network.

    python examples/neurobench_tasks.py wisdm watch_subset2_40.npz
    python examples/neurobench_tasks.py mackey-glass mg_17.npy

`wisdm`: which of some activities a watch was worn in, from 40 steps of six sensors; an ``.npz`` of six
arrays: samples ``[N, 40, 6]`` of the training, validation and test part, then their classes, one-hot.
`mackey-glass`: a chaotic series, an ``.npy`` of numbers, 75 a Lyapunov time; ten Lyapunov times are learned,
and the next ten forecast in a closed loop, as NeuroBench does: after the first step the network sees only
what it forecast itself.

Needs ``pip install hibana[neurobench]``.
"""

import argparse
from typing import Any

import numpy as np
import torch
from hibana.neurobench import Model, NeuronOperations
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
from neurobench.metrics.workload import (
    SMAPE,
    ActivationSparsity,
    ClassificationAccuracy,
    MembraneUpdates,
    SynapticOperations,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hibana as hb

STATIC = [ParameterCount, Footprint, ConnectionSparsity]
COUNTS = [ActivationSparsity, MembraneUpdates, SynapticOperations, NeuronOperations]
POINTS = 75
"""Of a series, in a Lyapunov time."""
WINDOW = 50
"""Points that a forecast sees."""


def network(inputs: int, outputs: int) -> nn.Sequential:
    """``[T, batch, inputs] -> [T, batch, outputs]``."""
    neurons = [hb.LIF(tau=10.0, surrogate="ATan", detach_reset=True) for _ in range(2)]
    return nn.Sequential(
        nn.Linear(inputs, 64),
        neurons[0],
        hb.Linear(64, 64),
        neurons[1],
        hb.Linear(64, outputs),
        hb.LI(tau=10.0),
    )


def trained(net: nn.Module, inputs: Tensor, targets: Tensor, objective: nn.Module, epochs: int) -> None:
    """Trains `net`, its last potential against `targets`; `inputs` are ``[N, T, ...]``."""
    batches = DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * len(batches))
    for _ in range(epochs):
        for some, wanted in batches:
            loss = objective(net(some.transpose(0, 1))[-1], wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def wisdm(path: str, epochs: int) -> dict[str, Any]:
    """Classes of activities."""
    with np.load(path) as file:
        samples = [torch.tensor(file[f"arr_{i}"], dtype=torch.float32) for i in range(3)]
        classes = [torch.tensor(file[f"arr_{i}"]).argmax(-1) for i in range(3, 6)]
    mean, scale = samples[0].mean((0, 1)), samples[0].std((0, 1)) + 1e-6
    training, test = ((part - mean) / scale for part in (samples[0], samples[2]))
    net = network(training.shape[2], int(classes[0].max()) + 1)
    trained(net, training, classes[0], nn.CrossEntropyLoss(), epochs)
    batches = DataLoader(TensorDataset(test, classes[2]), batch_size=256)
    metrics = [STATIC, [ClassificationAccuracy, *COUNTS]]
    last = lambda outputs: outputs[:, -1].argmax(-1)  # noqa: E731 - a postprocessor, batch first
    return Benchmark(Model(net), batches, [], [last], metrics).run(quiet=True)


class ClosedLoop(nn.Module):
    """`net` on the window that it is given first, then on what it forecast itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.window: Tensor | None = None

    def forward(self, given: Tensor) -> Tensor:
        self.window = given if self.window is None else self.window
        outputs: Tensor = self.net(self.window)
        self.window = torch.cat([self.window[1:], self.window[-1:] + outputs[-1:]])
        return self.window


def mackey_glass(path: str, epochs: int, times: int) -> dict[str, Any]:
    """Forecasts of a chaotic series; `net` says by how much the next point differs."""
    learned = times * POINTS
    series = torch.tensor(np.load(path), dtype=torch.float32).flatten()[: 2 * learned + 1, None]
    windows = series.unfold(0, WINDOW, 1).transpose(1, 2)[:-1]  # [N, WINDOW, 1]
    following = series[WINDOW:]
    last = learned - WINDOW
    net = network(1, 1)
    trained(net, windows[:last], (following - windows[:, -1])[:last], nn.MSELoss(), epochs)
    steps = DataLoader(TensorDataset(windows[last:], following[last:]), batch_size=1)
    metrics = [STATIC, [SMAPE, *COUNTS]]
    return Benchmark(Model(ClosedLoop(net)), steps, [], [lambda o: o[:, -1]], metrics).run(quiet=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("task", choices=["wisdm", "mackey-glass"])
    options.add_argument("file")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--times", type=int, default=10, help="Lyapunov times that are learned and forecast")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.manual_seed(asked.seed)
    if asked.task == "wisdm":
        found = wisdm(asked.file, asked.epochs)
    else:
        found = mackey_glass(asked.file, asked.epochs, asked.times)
    for name, value in found.items():
        told = value if isinstance(value, dict) else {"": value}
        for part, number in told.items():
            print(f"{' '.join(filter(None, (name, part))):40} {number:,.4g}")


if __name__ == "__main__":
    main()
