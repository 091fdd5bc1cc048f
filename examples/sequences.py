"""Compares a spiking network, a GRU and a causal convolutional ReLU network on sequences.

    python examples/sequences.py --task mnist-1d --network spiking gru relu --seed 0 1 2 --record runs.jsonl
    python examples/sequences.py --table runs.jsonl

The spiking network has three convolutions over five steps each (`hb.Window`), each followed by batch
normalization and LIF neurons. The dilations are 1, d and d², where d is the largest number for which the
receptive field is not longer than the sequence. This is the default of ``hibana train`` for sequences. The
ReLU network has ReLUs instead of the neurons. The GRU is torch's with a linear readout. All networks are
trained by the same recipe; only width, steps and epochs depend on the task. Inputs are not encoded: each step
receives one value of the sequence. The last step is classified. The epoch with the best validation accuracy
is tested once.
"""

import argparse
import copy
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from training import Batch, accuracy, keep, train

import hibana as hb
from hibana import data
from hibana.train import scale_to_rate


@dataclass(frozen=True)
class Task:
    """Settings of a task: time steps, epochs and the width of the layers."""

    steps: int
    epochs: int
    width: int = 96


TASKS = {
    "mnist-1d": Task(40, 40),
    "spoken-digits": Task(40, 30),
    "fashion-mnist-rows": Task(28, 8),
    "fashion-mnist-pixels": Task(196, 3),
}
NETWORKS = ("spiking", "gru", "relu")
OBJECTIVE = hb.loss.MembraneLast(smoothing=0.1)


class GRU(nn.Module):
    """torch's GRU with a linear readout of its last state, ``[1, batch, classes]``."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.gru, self.readout = nn.GRU(features, width), nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the scores, ``[1, batch, classes]``."""
        return self.readout(self.gru(inputs)[0][-1:])


class Clothes(data.DataSet):
    """Fashion-MNIST as sequences: 28 steps of one row each, or 196 steps of one value each.

    The 196 values are means over 2x2 pixels.
    """

    classes, sequential = 10, True

    def __init__(self, name: str, root: str | None) -> None:
        super().__init__()
        self.shape = (28,) if name.endswith("rows") else (1,)
        self.images = data.FashionMNIST(root=root)

    def splits(self) -> tuple[data.Samples, data.Samples, data.Samples]:
        """Returns training, validation and test split."""
        return tuple(data.InMemory(self.over_time(part.inputs), part.labels) for part in self.images.splits())

    def over_time(self, images: Tensor) -> Tensor:
        """Converts images ``[N, 28, 28]`` to sequences ``[N, T, *shape]``."""
        if self.shape == (28,):
            return images
        return nn.functional.avg_pool2d(images[:, None].float() / 255, 2).flatten(1)[..., None]


def dilation(steps: int) -> int:
    """Returns the largest d so that three windows with dilations 1, d and d² cover at most `steps` steps."""
    return max(d for d in range(1, steps) if d == 1 or 4 * (1 + d + d * d) <= steps)


def network(kind: str, features: int, width: int, classes: int, steps: int) -> nn.Module:
    """Returns a network ``[T, batch, features] -> [T, batch, classes]``; the GRU returns one step."""
    if kind == "gru":
        return GRU(features, width, classes)
    layers: list[nn.Module] = []
    for number in range(3):
        window = hb.Window(
            features if number == 0 else width, width, 5, dilation(steps) ** number, bias=False
        )
        neurons = hb.LIF(surrogate="ATan", detach_reset=True) if kind == "spiking" else nn.ReLU()
        layers += [window, hb.EachStep(nn.BatchNorm1d(width)), neurons]
    return nn.Sequential(*layers, hb.Linear(width, classes), hb.LI(tau=20.0))


def batches(split: data.InMemory, size: int, order: Tensor) -> Iterator[Batch]:
    """Yields batches of `split` in the given order: inputs ``[T, batch, features]`` and labels."""
    for indices in order.split(size):
        inputs, labels = split.__getitems__(indices.tolist())
        yield inputs.transpose(0, 1).contiguous(), labels


def run(name: str, kind: str, seed: int, epochs: int | None, width: int | None, root: str | None) -> dict:
    """Trains one network; returns the result as a JSON row."""
    task = TASKS[name]
    epochs, width = epochs or task.epochs, width or task.width
    samples = Clothes(name, root) if name.startswith("fashion") else data.load(name, steps=task.steps)
    samples.setup()
    training, validation, test = samples.training, samples.validation, samples.test
    torch.manual_seed(seed)
    net = network(kind, *samples.shape, width, samples.classes, task.steps)
    if kind == "spiking":
        scale_to_rate(net, next(batches(training, 512, torch.arange(len(training))))[0], 0.15)
    objective = OBJECTIVE
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, -1, {})
    seconds, start = 0.0, time.process_time()
    history: list[float] = []

    def validate(epoch: int) -> None:
        nonlocal best, seconds, start
        seconds += time.process_time() - start
        validated, rates = accuracy(net, batches(validation, 500, torch.arange(len(validation))), objective)
        history.append(round(validated, 4))
        if validated > best[0]:
            best = validated, epoch, copy.deepcopy(net.state_dict())
        print(f"epoch {epoch}: {validated:.1%} {[f'{rate:.1%}' for rate in rates.values()]}", flush=True)
        start = time.process_time()

    generator = torch.Generator().manual_seed(seed)
    train(
        net,
        lambda _: batches(training, 64, torch.randperm(len(training), generator=generator)),
        -(-len(training) // 64),
        objective,
        epochs=epochs,
        learning_rate=3e-3,
        weight_decay=0.1,
        most_rate=0.15,
        each_epoch=validate,
    )
    net.load_state_dict(best[2])
    tested, rates = accuracy(net, batches(test, 500, torch.arange(len(test))), objective)
    return {
        "task": name,
        "network": kind,
        "seed": seed,
        "width": width,
        "steps": task.steps,
        "epochs": epochs,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "test": round(tested, 4),
        "validation": round(best[0], 4),
        "best epoch": best[1],
        "rates": [round(rate, 4) for rate in rates.values()],
        "processor seconds per epoch": round(seconds / epochs, 2),
        "history": history,
    }


def table(path: Path) -> str:
    """Returns the results in a JSON-lines file as a Markdown table: mean over the seeds, and each seed."""
    runs = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        runs[row["task"], row["network"], row["width"], row["epochs"]].append(row)
    lines = [
        "| task | network | parameters | epochs | test, mean | seeds: test (validation) | firing rates, mean "
        "| processor time per epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, kind, width, epochs), rows in runs.items():
        each = ", ".join(
            f"{row['seed']}: {row['test']:.1%} ({row['validation']:.1%})"
            for row in sorted(rows, key=lambda row: row["seed"])
        )
        rates = [f"{mean(layer):.1%}" for layer in zip(*(row["rates"] for row in rows), strict=True)]
        lines.append(
            f"| `{task}` | {kind}, {width} | {rows[0]['parameters']:,} | {epochs} "
            f"| {mean(row['test'] for row in rows):.1%} | {each} | {', '.join(rates)} "
            f"| {mean(row['processor seconds per epoch'] for row in rows):.1f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--task", choices=tuple(TASKS), default="mnist-1d")
    options.add_argument("--network", choices=NETWORKS, nargs="+", default=["spiking"])
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--epochs", type=int)
    options.add_argument("--width", type=int)
    options.add_argument("--root", help="folder of the files of Fashion-MNIST")
    options.add_argument("--record", type=Path, help="append a JSON line per training to this file")
    options.add_argument("--table", type=Path, help="print the results in this file without training")
    arguments = options.parse_args()
    if arguments.table is not None:
        print(table(arguments.table))
        return
    hb.keep_memory()
    torch.set_flush_denormal(True)
    for kind, seed in product(arguments.network, arguments.seed):
        row = run(arguments.task, kind, seed, arguments.epochs, arguments.width, arguments.root)
        print(json.dumps(row), flush=True)
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
