"""Three tasks, each learned by backpropagation through time and by every online rule: one recipe for all.

    python examples/learning_online.py --task recall --rule backpropagation ottt --record runs.jsonl
    python examples/learning_online.py --table runs.jsonl

MNIST-1D (a step sees the last eight of the 40 values), spoken digits (13 coefficients, 40 steps), and
recall: one of eight symbols is shown, and asked for 30 steps later. One layer of 128 LIF neurons,
feed-forward or recurrent, and a leaky readout; the loss is asked in the last steps. Nothing but the gradient
differs; the traces of pp-prop decay as the neurons leak.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import recall
import torch
from torch import Tensor, nn
from torch.nn import functional
from training import Batch, keep

import hibana as hb
from hibana import data
from hibana.train import scale_to_rate

RULES = ("backpropagation", "d-rtrl", "e-prop", "ottt", "pp-prop")
HIDDEN, BATCH, SEEN, DELAY = 128, 64, 8, 30


@dataclass(frozen=True)
class Task:
    """What differs from task to task."""

    inputs: int
    classes: int
    asked: int
    """The last steps, in each of which there is a loss."""
    epochs: int
    tau: float
    """Of the neurons."""
    rate: float
    """Spikes per neuron and step that the weights are scaled to."""


TASKS = {
    "mnist-1d": Task(SEEN, 10, asked=20, epochs=12, tau=5.0, rate=0.1),
    "spoken-digits": Task(13, 10, asked=20, epochs=10, tau=5.0, rate=0.1),
    "recall": Task(9, 8, asked=recall.SHOWN, epochs=20, tau=30.0, rate=0.05),
}


class Parts:
    """Batches of a task for training, and those that it is tested with."""

    def __init__(self, name: str, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.name, self.samples = name, None
        if name != "recall":
            self.samples = data.load(name, steps=40)
            self.samples.setup()

    def training(self) -> Iterator[Batch]:
        """Those of an epoch."""
        if self.samples is None:
            for _ in range(len(self)):
                yield recall.sequences(BATCH, DELAY, self.generator)
            return
        order = torch.randperm(len(self.samples.training), generator=self.generator)
        yield from self._batches(self.samples.training, order)

    def test(self) -> Iterator[Batch]:
        """Those of the test."""
        if self.samples is None:
            yield recall.sequences(2000, DELAY, torch.Generator().manual_seed(10_000))
            return
        yield from self._batches(self.samples.test, torch.arange(len(self.samples.test)))

    def __len__(self) -> int:
        return recall.BATCHES if self.samples is None else -(-len(self.samples.training) // BATCH)

    def _batches(self, split: data.InMemory, order: Tensor) -> Iterator[Batch]:
        for chosen in order.split(BATCH):
            inputs, labels = split.__getitems__(chosen.tolist())
            x = inputs.transpose(0, 1).contiguous()
            if self.name == "mnist-1d":
                padded = functional.pad(x[..., 0], (0, 0, SEEN - 1, 0))  # [T + 7, batch]
                x = padded.unfold(0, SEEN, 1).contiguous()
            yield x, labels


def network(task: Task, kind: str) -> nn.Module:
    """``[T, batch, inputs] -> [T, batch, classes]``."""
    cell = hb.LIFCell(tau=task.tau, surrogate="ATan", reset="subtract")
    neurons = hb.Recurrent(cell, HIDDEN) if kind == "recurrent" else hb.OverTime(cell)
    return nn.Sequential(
        nn.Linear(task.inputs, HIDDEN), neurons, nn.Linear(HIDDEN, task.classes), hb.LI(tau=10.0)
    )


def run(name: str, kind: str, rule: str, seed: int, epochs: int | None, rate: float) -> dict[str, Any]:
    """Trains once, and says what came of it."""
    task, parts = TASKS[name], Parts(name, seed)
    epochs = epochs or task.epochs
    torch.manual_seed(seed)
    net = network(task, kind)
    scale_to_rate(net, next(parts.training())[0], task.rate)
    chosen = hb.learn.PPProp(decay=1 - 1 / task.tau) if rule == "pp-prop" else rule
    learner = None if rule == "backpropagation" else hb.learn.online(net, chosen)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(parts))
    for _ in range(epochs):
        for x, labels in parts.training():
            optimizer.zero_grad()
            loss = loss_of_step(labels, len(x) - task.asked, task.asked)
            if learner is None:
                losses = [loss(t, y) for t, y in enumerate(net(x))]
                torch.stack([one for one in losses if one is not None]).sum().backward()
            else:
                learner.sequence(x, loss)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    right, fired = accuracy(net, parts.test(), task.asked)
    return {
        "task": name,
        "network": kind,
        "rule": rule,
        "seed": seed,
        "epochs": epochs,
        "test": round(right, 4),
        "rate": round(fired, 4),
    }


def loss_of_step(labels: Tensor, first: int, asked: int) -> Callable[[int, Tensor], Tensor | None]:
    """The loss of each of so many last steps, from `first` on."""
    return lambda t, y: functional.cross_entropy(y, labels) / asked if t >= first else None


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterator[Batch], asked: int) -> tuple[float, float]:
    """The part that `net` names rightly by the mean of its outputs where it is asked, and its firing rate."""
    right, seen, fired = 0, 0, []
    for x, labels in batches:
        spikes = net[:2](x)
        right += int((net[2:](spikes)[-asked:].mean(0).argmax(1) == labels).sum())
        seen += len(labels)
        fired.append(float(spikes.mean()))
    return right / seen, mean(fired)


def table(path: Path) -> str:
    """What was recorded, as Markdown: the mean of the seeds, and each of them."""
    runs: dict[tuple[str, str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["seed"]):
        runs[row["task"], row["network"], row["epochs"]][row["rule"]].append(row["test"])
    named = " | ".join(f"`{rule}`" for rule in RULES)
    lines = [f"| task | network | epochs | {named} |", "|---|---|---|" + "---|" * len(RULES)]
    for (task, kind, epochs), by_rule in runs.items():
        cells = []
        for rule in RULES:
            each = ", ".join(f"{right:.1%}" for right in by_rule[rule])
            cells.append(f"{mean(by_rule[rule]):.1%} ({each})" if each else "–")
        lines.append(f"| {task} | {kind} | {epochs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--task", choices=tuple(TASKS), nargs="+", default=["mnist-1d"])
    options.add_argument(
        "--network", choices=("feed-forward", "recurrent"), nargs="+", default=["feed-forward"]
    )
    options.add_argument("--rule", choices=RULES, nargs="+", default=["d-rtrl"])
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--epochs", type=int)
    options.add_argument("--learning-rate", type=float, default=5e-3)
    options.add_argument("--record", type=Path, help="a file that a line is added to")
    options.add_argument("--table", type=Path, help="print what such a file holds, and train nothing")
    asked = options.parse_args()
    if asked.table is not None:
        print(table(asked.table))
        return
    hb.keep_memory()
    torch.set_flush_denormal(True)
    for name, kind, rule, seed in product(asked.task, asked.network, asked.rule, asked.seed):
        row = run(name, kind, rule, seed, asked.epochs, asked.learning_rate)
        print(json.dumps(row), flush=True)
        keep(asked.record, row)


if __name__ == "__main__":
    main()
