"""Compares backpropagation through time and all online rules on three tasks.

    python examples/learning_online.py --task recall --rule backpropagation ottt --record runs.jsonl
    python examples/learning_online.py --table runs.jsonl

The tasks: MNIST-1D, whose step receives the last 8 of the 40 values (in ``mnist-1d-whole`` the last 40, with
a loss in each step and faster neurons); spoken digits, 40 steps of 13 coefficients; and recall: the network
must name one of eight symbols 30 steps after it was shown. The network has one layer of 128 LIF neurons,
feed-forward or recurrent, and a readout with or without a leaky integrator. Only the gradient differs between
the rules. With several learning rates (or decays of pp-prop), the first seed is trained with each of them;
the other seeds use the setting with the best validation accuracy.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import recall
import torch
from torch import Tensor, nn
from torch.nn import functional
from training import Batch, keep

import hibana as hb
from hibana import data
from hibana.train import scale_to_rate

RULES = ("backpropagation", "d-rtrl", "e-prop", "ottt", "pp-prop")
NETWORKS, READOUTS = ("feed-forward", "recurrent"), ("leaky", "linear")
HIDDEN, BATCH, DELAY = 128, 64, 30


@dataclass(frozen=True)
class Task:
    """Settings of a task."""

    name: str
    data: str
    """Name of the data set; "" if the data are generated."""
    inputs: int
    classes: int
    losses: int
    """Number of steps at the end of the sequence that have a loss."""
    epochs: int
    tau: float
    """Time constant of the neurons in steps."""
    rate: float
    """Firing rate to which the initial weights are scaled, in spikes per neuron and step."""


TASKS = {
    task.name: task
    for task in (
        Task("mnist-1d", "mnist-1d", inputs=8, classes=10, losses=20, epochs=12, tau=5.0, rate=0.1),
        Task("mnist-1d-whole", "mnist-1d", inputs=40, classes=10, losses=40, epochs=12, tau=2.0, rate=0.1),
        Task(
            "spoken-digits", "spoken-digits", inputs=13, classes=10, losses=20, epochs=10, tau=5.0, rate=0.1
        ),
        Task("recall", "", inputs=9, classes=8, losses=recall.SHOWN, epochs=20, tau=30.0, rate=0.05),
    )
}


class Settings(NamedTuple):
    """Settings of a rule that are selected by validation accuracy."""

    learning_rate: float
    decay: float | None
    """Decay of the traces of pp-prop; ``None`` for other rules."""


class Parts:
    """Batches of a task for training, validation and test."""

    def __init__(self, task: Task, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.task, self.samples = task, None
        if task.data:
            self.samples = data.load(task.data, steps=40)
            self.samples.setup()

    def training(self) -> Iterator[Batch]:
        """Yields the training batches of an epoch."""
        if self.samples is None:
            for _ in range(len(self)):
                yield recall.sequences(BATCH, DELAY, self.generator)
            return
        order = torch.randperm(len(self.samples.training), generator=self.generator)
        yield from self._batches(self.samples.training, order.split(BATCH))

    def held_out(self, part: str) -> Iterator[Batch]:
        """Yields the batches of `part`: "validation" or "test"."""
        if self.samples is None:
            seed = {"validation": 20_000, "test": 10_000}[part]
            yield recall.sequences(2000, DELAY, torch.Generator().manual_seed(seed))
            return
        split = getattr(self.samples, part)
        yield from self._batches(split, torch.arange(len(split)).split(8 * BATCH))

    def __len__(self) -> int:
        return recall.BATCHES if self.samples is None else -(-len(self.samples.training) // BATCH)

    def _batches(self, split: data.InMemory, batches: tuple[Tensor, ...]) -> Iterator[Batch]:
        for indices in batches:
            inputs, labels = split.__getitems__(indices.tolist())
            x = inputs.transpose(0, 1).contiguous()
            if self.task.data == "mnist-1d":
                width = self.task.inputs
                padded = functional.pad(x[..., 0], (0, 0, width - 1, 0))  # [T + width - 1, batch]
                x = padded.unfold(0, width, 1).contiguous()
            yield x, labels


def network(task: Task, kind: str, readout: str) -> nn.Module:
    """Returns a network ``[T, batch, inputs] -> [T, batch, classes]``.

    With a linear readout, the reset passes no gradient. Every rule then computes the exact gradient of a
    feed-forward layer.
    """
    linear = readout == "linear"
    cell = hb.LIFCell(tau=task.tau, surrogate="ATan", reset="subtract", detach_reset=linear)
    neurons = hb.Recurrent(cell, HIDDEN) if kind == "recurrent" else hb.OverTime(cell)
    leaky = [] if linear else [hb.LI(tau=10.0)]
    return nn.Sequential(nn.Linear(task.inputs, HIDDEN), neurons, nn.Linear(HIDDEN, task.classes), *leaky)


def run(task: Task, kind: str, readout: str, rule: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains one network; returns the result as a JSON row."""
    parts = Parts(task, seed)
    torch.manual_seed(seed)
    net = network(task, kind, readout)
    scale_to_rate(net, next(parts.training())[0], task.rate)
    selected_rule = rule if settings.decay is None else hb.learn.PPProp(settings.decay)
    learner = None if rule == "backpropagation" else hb.learn.online(net, selected_rule)
    optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, task.epochs * len(parts)
    )
    for _ in range(task.epochs):
        for x, labels in parts.training():
            optimizer.zero_grad()
            loss = chunk_loss(labels, len(x) - task.losses, task.losses)
            if learner is None:
                loss(0, net(x)).backward()
            else:
                learner.sequence(x, loss, by_chunk=True)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    validation, _ = accuracy(net, parts.held_out("validation"), task.losses)
    test, rate = accuracy(net, parts.held_out("test"), task.losses)
    return {
        "task": task.name,
        "network": kind,
        "readout": readout,
        "rule": rule,
        "seed": seed,
        "epochs": task.epochs,
        **settings._asdict(),
        "validation": round(validation, 4),
        "test": round(test, 4),
        "rate": round(rate, 4),
    }


def chunk_loss(labels: Tensor, begin: int, losses: int) -> Callable[[int, Tensor], Any]:
    """Returns the loss of a chunk as a function of its first step and its outputs.

    The losses of all chunks add up to the mean cross-entropy over the last `losses` steps, from `begin`
    on. A chunk that ends before `begin` has no loss.
    """

    def loss(first: int, outputs: Tensor) -> Tensor | None:
        scores = outputs[max(begin - first, 0) :]
        if not len(scores):
            return None
        mean_loss = functional.cross_entropy(scores.flatten(0, 1), labels.repeat(len(scores)))
        return mean_loss * (len(scores) / losses)

    return loss


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterator[Batch], losses: int) -> tuple[float, float]:
    """Returns accuracy and firing rate; the mean output over the last `losses` steps names the class."""
    correct, total, rates = 0, 0, []
    for x, labels in batches:
        spikes = net[:2](x)
        correct += int((net[2:](spikes)[-losses:].mean(0).argmax(1) == labels).sum())
        total += len(labels)
        rates.append(float(spikes.mean()))
    return correct / total, mean(rates)


def runs(
    task: Task, kind: str, readout: str, rule: str, seeds: list[int], rates: list[float], decays: list[float]
) -> Iterator[dict[str, Any]]:
    """Trains the first seed with all settings, the other seeds with the best; yields a row per training."""
    rule_decays = decays if rule == "pp-prop" else [None]
    first = []
    for settings in (Settings(rate, decay) for rate in rates for decay in rule_decays):
        row = run(task, kind, readout, rule, seeds[0], settings)
        first.append((row["validation"], settings))
        yield row
    _, best = max(first, key=lambda pair: pair[0])
    for seed in seeds[1:]:
        yield run(task, kind, readout, rule, seed, best)


def table(path: Path) -> str:
    """Returns the results in a JSON-lines file as a Markdown table: mean test accuracy, and each seed."""
    results: dict[tuple[Any, ...], dict[str, dict[Settings, list[dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["seed"]):
        settings = Settings(row["learning_rate"], row["decay"])
        results[row["readout"], row["task"], row["network"], row["epochs"]][row["rule"]][settings].append(row)
    titles = ["readout", "task", "network", "epochs", "learning rate", *(f"`{rule}`" for rule in RULES)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for first, by_rule in results.items():
        best = {rule: max(each.items(), key=_seeds_then_validation) for rule, each in by_rule.items()}
        rates = sorted({settings.learning_rate for settings, _ in best.values()})
        cells = [_cell(*best[rule]) if rule in best else "–" for rule in RULES]
        lines.append(f"| {' | '.join(map(str, (*first, ', '.join(map(str, rates)), *cells)))} |")
    return "\n".join(lines)


def _seeds_then_validation(pair: tuple[Settings, list[dict[str, Any]]]) -> tuple[int, float]:
    """Returns the sort key of settings: number of seeds, then mean validation accuracy."""
    _, rows = pair
    return len(rows), mean(row["validation"] or 0.0 for row in rows)


def _cell(settings: Settings, rows: list[dict[str, Any]]) -> str:
    accuracies = [row["test"] for row in rows]
    each = ", ".join(f"{one:.1%}" for one in accuracies)
    decay = "" if settings.decay is None else f"; decay {settings.decay:.2g}"
    return f"{mean(accuracies):.1%} ({each}){decay}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--task", choices=tuple(TASKS), nargs="+", default=["mnist-1d"])
    options.add_argument("--network", choices=NETWORKS, nargs="+", default=["feed-forward"])
    options.add_argument("--readout", choices=READOUTS, nargs="+", default=["leaky"])
    options.add_argument("--rule", choices=RULES, nargs="+", default=["d-rtrl"])
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--epochs", type=int, help="default: that of the task")
    options.add_argument("--learning-rate", type=float, nargs="+", default=[5e-3])
    options.add_argument("--decay", type=float, nargs="+", default=[0.9], help="decay of pp-prop's traces")
    options.add_argument("--record", type=Path, help="append a JSON line per training to this file")
    options.add_argument("--table", type=Path, help="print the results in this file without training")
    arguments = options.parse_args()
    if arguments.table is not None:
        print(table(arguments.table))
        return
    hb.keep_memory()
    torch.set_flush_denormal(True)
    choices = product(arguments.task, arguments.network, arguments.readout, arguments.rule)
    for name, kind, readout, rule in choices:
        task = TASKS[name]
        task = replace(task, epochs=arguments.epochs or task.epochs)
        for row in runs(task, kind, readout, rule, arguments.seed, arguments.learning_rate, arguments.decay):
            print(json.dumps(row), flush=True)
            keep(arguments.record, row)


if __name__ == "__main__":
    main()
