"""Three tasks, each learned by backpropagation through time and by every online rule: one recipe for all.

    python examples/learning_online.py --task recall --rule backpropagation ottt --record runs.jsonl
    python examples/learning_online.py --table runs.jsonl

MNIST-1D (a step sees the last 8 of the 40 values, or, with a loss at each step and faster neurons, the last
40), spoken digits (13 coefficients, 40 steps), and recall: one of eight symbols is shown, and asked for 30
steps later. One layer of 128 LIF neurons, feed-forward or recurrent, and a readout, which is leaky or has no
memory. Nothing but the gradient differs. Given several learning rates (and decays of pp-prop), the first seed
is trained with each of them, and the other seeds with the one whose accuracy on the validation part was the
best.
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
    """What differs from task to task."""

    name: str
    data: str
    """The name of its data set; "" if it has none."""
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
    task.name: task
    for task in (
        Task("mnist-1d", "mnist-1d", inputs=8, classes=10, asked=20, epochs=12, tau=5.0, rate=0.1),
        Task("mnist-1d-whole", "mnist-1d", inputs=40, classes=10, asked=40, epochs=12, tau=2.0, rate=0.1),
        Task("spoken-digits", "spoken-digits", inputs=13, classes=10, asked=20, epochs=10, tau=5.0, rate=0.1),
        Task("recall", "", inputs=9, classes=8, asked=recall.SHOWN, epochs=20, tau=30.0, rate=0.05),
    )
}


class Settings(NamedTuple):
    """What is chosen for each rule, by its accuracy on the validation part."""

    learning_rate: float
    decay: float | None
    """Of the traces of pp-prop."""


class Parts:
    """Batches of a task for training, validation and test."""

    def __init__(self, task: Task, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.task, self.samples = task, None
        if task.data:
            self.samples = data.load(task.data, steps=40)
            self.samples.setup()

    def training(self) -> Iterator[Batch]:
        """Those of an epoch."""
        if self.samples is None:
            for _ in range(len(self)):
                yield recall.sequences(BATCH, DELAY, self.generator)
            return
        order = torch.randperm(len(self.samples.training), generator=self.generator)
        yield from self._batches(self.samples.training, order.split(BATCH))

    def held_out(self, part: str) -> Iterator[Batch]:
        """Those of the part "validation" or "test"."""
        if self.samples is None:
            seed = {"validation": 20_000, "test": 10_000}[part]
            yield recall.sequences(2000, DELAY, torch.Generator().manual_seed(seed))
            return
        split = getattr(self.samples, part)
        yield from self._batches(split, torch.arange(len(split)).split(8 * BATCH))

    def __len__(self) -> int:
        return recall.BATCHES if self.samples is None else -(-len(self.samples.training) // BATCH)

    def _batches(self, split: data.InMemory, chosen: tuple[Tensor, ...]) -> Iterator[Batch]:
        for indices in chosen:
            inputs, labels = split.__getitems__(indices.tolist())
            x = inputs.transpose(0, 1).contiguous()
            if self.task.data == "mnist-1d":
                seen = self.task.inputs
                padded = functional.pad(x[..., 0], (0, 0, seen - 1, 0))  # [T + seen - 1, batch]
                x = padded.unfold(0, seen, 1).contiguous()
            yield x, labels


def network(task: Task, kind: str, readout: str) -> nn.Module:
    """``[T, batch, inputs] -> [T, batch, classes]``.

    With a linear readout the gradient at the reset is stopped too, so that every rule has the whole gradient
    of a feed-forward layer.
    """
    linear = readout == "linear"
    cell = hb.LIFCell(tau=task.tau, surrogate="ATan", reset="subtract", detach_reset=linear)
    neurons = hb.Recurrent(cell, HIDDEN) if kind == "recurrent" else hb.OverTime(cell)
    behind = [] if linear else [hb.LI(tau=10.0)]
    return nn.Sequential(nn.Linear(task.inputs, HIDDEN), neurons, nn.Linear(HIDDEN, task.classes), *behind)


def run(task: Task, kind: str, readout: str, rule: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains once, and says what came of it."""
    parts = Parts(task, seed)
    torch.manual_seed(seed)
    net = network(task, kind, readout)
    scale_to_rate(net, next(parts.training())[0], task.rate)
    chosen = rule if settings.decay is None else hb.learn.PPProp(settings.decay)
    learner = None if rule == "backpropagation" else hb.learn.online(net, chosen)
    optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, task.epochs * len(parts)
    )
    for _ in range(task.epochs):
        for x, labels in parts.training():
            optimizer.zero_grad()
            loss = loss_of_steps(labels, len(x) - task.asked, task.asked)
            if learner is None:
                loss(0, net(x)).backward()
            else:
                learner.sequence(x, loss, by_chunk=True)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    validated, _ = accuracy(net, parts.held_out("validation"), task.asked)
    right, fired = accuracy(net, parts.held_out("test"), task.asked)
    return {
        "task": task.name,
        "network": kind,
        "readout": readout,
        "rule": rule,
        "seed": seed,
        "epochs": task.epochs,
        **settings._asdict(),
        "validation": round(validated, 4),
        "test": round(right, 4),
        "rate": round(fired, 4),
    }


def loss_of_steps(labels: Tensor, begin: int, asked: int) -> Callable[[int, Tensor], Any]:
    """The mean cross-entropy of so many last steps, from `begin` on: the part of it that lies in a chunk."""

    def loss(first: int, outputs: Tensor) -> Tensor | None:
        here = outputs[max(begin - first, 0) :]
        if not len(here):
            return None
        return functional.cross_entropy(here.flatten(0, 1), labels.repeat(len(here))) * (len(here) / asked)

    return loss


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


def runs(
    task: Task, kind: str, readout: str, rule: str, seeds: list[int], rates: list[float], decays: list[float]
) -> Iterator[dict[str, Any]]:
    """The first seed with all settings, the others with those that validation chose."""
    of_rule = decays if rule == "pp-prop" else [None]
    first = []
    for settings in (Settings(rate, decay) for rate in rates for decay in of_rule):
        row = run(task, kind, readout, rule, seeds[0], settings)
        first.append((row["validation"], settings))
        yield row
    _, best = max(first, key=lambda pair: pair[0])
    for seed in seeds[1:]:
        yield run(task, kind, readout, rule, seed, best)


def table(path: Path) -> str:
    """What was recorded, as Markdown: the mean of the test accuracies of all seeds, and each of them."""
    found: dict[tuple[Any, ...], dict[str, dict[Settings, list[dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["seed"]):
        settings = Settings(row["learning_rate"], row["decay"])
        found[row["readout"], row["task"], row["network"], row["epochs"]][row["rule"]][settings].append(row)
    titles = ["readout", "task", "network", "epochs", "learning rate", *(f"`{rule}`" for rule in RULES)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for first, by_rule in found.items():
        chosen = {rule: max(each.items(), key=_seeds_then_validation) for rule, each in by_rule.items()}
        rates = sorted({settings.learning_rate for settings, _ in chosen.values()})
        cells = [_cell(*chosen[rule]) if rule in chosen else "–" for rule in RULES]
        lines.append(f"| {' | '.join(map(str, (*first, ', '.join(map(str, rates)), *cells)))} |")
    return "\n".join(lines)


def _seeds_then_validation(pair: tuple[Settings, list[dict[str, Any]]]) -> tuple[int, float]:
    """What the settings that are shown have most of: seeds, and then accuracy on the validation part."""
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
    options.add_argument("--epochs", type=int, help="instead of the task's")
    options.add_argument("--learning-rate", type=float, nargs="+", default=[5e-3])
    options.add_argument("--decay", type=float, nargs="+", default=[0.9], help="of pp-prop's traces")
    options.add_argument("--record", type=Path, help="a file that a line is added to")
    options.add_argument("--table", type=Path, help="print what such a file holds, and train nothing")
    asked = options.parse_args()
    if asked.table is not None:
        print(table(asked.table))
        return
    hb.keep_memory()
    torch.set_flush_denormal(True)
    for name, kind, readout, rule in product(asked.task, asked.network, asked.readout, asked.rule):
        task = TASKS[name]
        task = replace(task, epochs=asked.epochs or task.epochs)
        for row in runs(task, kind, readout, rule, asked.seed, asked.learning_rate, asked.decay):
            print(json.dumps(row), flush=True)
            keep(asked.record, row)


if __name__ == "__main__":
    main()
