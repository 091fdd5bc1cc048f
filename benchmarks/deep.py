"""Deep convolutional networks with batch normalization beside ReLU: a step of training and inference.

``[T=4, batch 16, 3x32x32]``, the image shown at each step. Every contender has the same weights, image and
layers; what differs is the neuron and, for hibana, the layers whose work follows the spikes. The shift of
each batch normalization is such that its neurons fire at the rate asked for, with the statistics of the
batch in training and with the running ones, which are made to be those, in evaluation. The ReLU network
computes each step, as the others do: ``relu`` in torch's own order of memory, ``relu-last`` channels last,
in which torch is faster.

With ``python -m benchmarks.deep`` it runs on any version of hibana that is on the path, one network a call.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

import hibana as hb
from benchmarks.steps import inference, training_step
from benchmarks.tables import grouped, number, table

__all__ = ["NETWORKS", "build", "jobs", "sample", "section", "tuned"]

Row = dict[str, Any]
STEPS, BATCH, CLASSES = 4, 16, 10
SHAPE = (3, 32, 32)
RATE = 0.16
VGG = (64, 128, 256)
RESIDUAL = (32, 64, 128)
SURROGATES = ("Step", "Box", "Triangle")


class Neurons(nn.Module):
    """The neurons of `contender` behind a convolution and its batch normalization, over time."""

    def __init__(self, contender: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        ours = contender.startswith("hibana")
        kind = hb.Conv2d if ours else nn.Conv2d
        convolution = kind(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.below = hb.EachStep(nn.Sequential(convolution, self.norm))
        self.neurons = _neuron(contender)
        self.layer = nn.Sequential(self.below, self.neurons)

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.layer(inputs))


class Block(nn.Module):
    """A residual block: the neurons of two convolutions, and what came in, added."""

    def __init__(self, contender: str, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = Neurons(contender, inputs, outputs, stride=stride)
        self.path = nn.Sequential(first, Neurons(contender, outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Neurons(contender, inputs, outputs, 1, stride)
        sums = getattr(hb.events, "add", None) if contender.startswith("hibana") else None
        self.add = sums or torch.add

    def forward(self, inputs: Tensor) -> Tensor:
        return self.add(self.path(inputs), self.shortcut(inputs))


class MeanOfSteps(nn.Module):
    """A linear layer on the mean over the image: ``[T, B, C, H, W]`` to classes at each step."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.linear(images.mean((-2, -1))))


def _neuron(contender: str) -> nn.Module:
    if contender.startswith("relu"):
        return nn.ReLU()
    if contender.startswith("hibana"):
        surrogate = getattr(hb.surrogate, contender.partition("+")[2] or "Step")
        return hb.IF(1.0, surrogate(), detach_reset=True)
    from benchmarks import peers

    return peers.PEERS[contender].layer(peers.CASES["step"]).module


def _vgg(contender: str) -> Iterator[nn.Module]:
    pooling = hb.events.MaxPool2d if contender.startswith("hibana") else nn.MaxPool2d
    inputs = SHAPE[0]
    for outputs in VGG:
        yield Neurons(contender, inputs, outputs)
        yield Neurons(contender, outputs, outputs)
        yield hb.EachStep(pooling(2))
        inputs = outputs
    yield MeanOfSteps(inputs)


def _residual(contender: str) -> Iterator[nn.Module]:
    inputs = RESIDUAL[0]
    yield Neurons(contender, SHAPE[0], inputs)
    for stage, outputs in enumerate(RESIDUAL):
        yield Block(contender, inputs, outputs, 2 if stage else 1)
        yield Block(contender, outputs, outputs, 1)
        inputs = outputs
    yield MeanOfSteps(inputs)


NETWORKS: dict[str, tuple[str, Callable[[str], Iterator[nn.Module]]]] = {
    "vgg": ("VGG 64c3-64c3-p2-128c3-128c3-p2-256c3-256c3-p2-10", _vgg),
    "sew": ("SEW-ResNet 32c3, blocks of 32, 32, 64, 64, 128, 128, 10", _residual),
}


class Images(nn.Module):
    """`net` over the image at each step; ReLU's may get copies that lie channels last."""

    def __init__(self, net: nn.Sequential, contender: str) -> None:
        super().__init__()
        self.net, self.last = net, contender == "relu-last"

    def forward(self, image: Tensor) -> Tensor:
        inputs = image.expand(STEPS, *image.shape)
        if self.last:
            last = inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            inputs = last.view(STEPS, len(image), *image.shape[1:])
        return cast(Tensor, self.net(inputs))


def build(name: str, contender: str, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """Network `name` with the neurons of `contender`, ``[batch, 3, 32, 32]`` to ``[T, batch, classes]``."""
    torch.manual_seed(0)
    net = nn.Sequential(*NETWORKS[name][1](contender))
    if weights is not None:
        net.load_state_dict(weights, strict=False)  # a peer's neuron has buffers of its own
    if contender == "relu-last":
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Images(net, contender)


def sample() -> tuple[Tensor, Tensor]:
    """Images of normal numbers, and a class for each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, *SHAPE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


@torch.no_grad()
def tuned(name: str, contender: str, image: Tensor, rate: float) -> tuple[dict[str, Tensor], list[float]]:
    """Weights with which each layer of neurons fires at `rate`, and the rates that they reach."""
    net = cast(Images, build(name, contender))
    reached: list[float] = []

    def settle(part: Neurons, given: tuple[Tensor, ...]) -> None:
        """Bisects the shift of the normalization, and has running statistics be those of the batch."""
        low, high = -3.0, 3.0
        below = part.below(*given)
        part.norm.momentum = 1.0
        part.below(*given)
        part.norm.momentum = 0.1
        for _ in range(14):
            shift = (low + high) / 2
            firing = float(part.neurons(below + shift).mean())
            low, high = (low, shift) if firing > rate else (shift, high)
        part.norm.bias.fill_(shift)
        reached.append(firing)

    for part in net.modules():
        if isinstance(part, Neurons):
            part.register_forward_pre_hook(settle)
    net(image)
    return net.net.state_dict(), reached


def measured(name: str, contenders: list[str], rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Seconds of each contender in turn, round after round, and its ratio to ReLU's in the same round."""
    hb.keep_memory()
    torch.set_flush_denormal(True)
    image, targets = sample()
    weights, firing = tuned(name, "hibana", image, RATE)
    rows = []
    for kind in ("training step", "inference"):
        nets = {who: build(name, who, weights).train(kind == "training step") for who in contenders}
        call = partial(training_step, targets=targets) if kind == "training step" else inference
        calls = {who: call(net, image) for who, net in nets.items()}
        seconds: dict[str, list[float]] = {who: [] for who in calls}
        for each in calls.values():
            each()
            each()
        order = list(calls)
        for turn in range(rounds):
            first = turn % len(order)
            for who in order[first:] + order[:first]:
                began = clock()
                calls[who]()
                seconds[who].append(clock() - began)
        for who, found in seconds.items():
            beside = {
                relu: statistics.median(a / b for a, b in zip(found, seconds[relu], strict=True))
                for relu in seconds
                if relu.startswith("relu")
            }
            about = {"network": name, "rate": RATE, "rates": firing, "pass": kind, "contender": who}
            times = {"ms": 1e3 * statistics.median(found), "ms_low": 1e3 * min(found), "calls": rounds}
            rows.append({**about, **times, "of": beside})
    return rows


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One network a job, beside the peers that are there."""
    return {f"deep/{name}": partial(_beside_peers, name, 1 if quick else 15) for name in NETWORKS}


def _beside_peers(name: str, rounds: int) -> list[Row]:
    from benchmarks import peers

    usable, _ = peers.available()
    contenders = ["relu", "relu-last", *(f"hibana+{surrogate}" for surrogate in SURROGATES), *usable]
    return measured(name, contenders, rounds, time.perf_counter)


def section(rows: list[Row]) -> Iterator[str]:
    """A table for each network and pass, for the report."""
    yield (
        f"[T={STEPS}, batch {BATCH}, {'x'.join(map(str, SHAPE))}], the image at each step; each layer fires "
        f"at {RATE:.0%}. `relu-last` is the ReLU network channels last in memory.\n"
    )
    for (name, kind), found in grouped(rows, "network", "pass").items():
        yield f"{NETWORKS[name][0]}, {kind}:\n"
        lines = [
            [who, number(row["ms"]), *(number(row["of"].get(relu)) for relu in ("relu", "relu-last"))]
            for who, row in found.items()
        ]
        yield from table(["", "ms", "to relu", "to relu-last"], lines)


def main() -> None:
    """One network, printed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--contenders", nargs="+", default=["relu", "relu-last", "hibana", "hibana+Box"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="of all threads, instead of the clock")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    rows = measured(options.network, options.contenders, options.rounds, clock)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{NETWORKS[options.network][0]}, firing {' '.join(f'{r:.3f}' for r in rows[0]['rates'])}")
    for row in rows:
        beside = ", ".join(f"{ratio:.3f} of {who}" for who, ratio in row["of"].items())
        print(f"{row['pass']:14} {row['contender']:16} {row['ms']:8.1f} ms  {beside}")


if __name__ == "__main__":
    sys.exit(main())
