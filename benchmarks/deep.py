"""Times training steps and inference of deep convolutional networks with batch normalization.

The input is ``[T=4, batch 16, 3x32x32]``, the same image at each step. All contenders have the same weights,
image and layers; only the neurons differ and, for hibana, the layers that work per spike. The shift of each
batch normalization is tuned so that its neurons fire at a given rate. The running statistics are set to
those of the batch, so that evaluation has the same rate as training. The ReLU networks compute every time
step, too: ``relu`` with contiguous images, ``relu-last`` with channels-last images, which torch computes
faster.

``python -m benchmarks.deep`` measures one network with any version of hibana on the Python path.
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

__all__ = ["NETWORKS", "build", "jobs", "sample", "section", "tune_weights"]

Row = dict[str, Any]
STEPS, BATCH, CLASSES = 4, 16, 10
SHAPE = (3, 32, 32)
RATE = 0.16
VGG = (64, 128, 256)
RESIDUAL = (32, 64, 128)
SURROGATES = ("Step", "Box", "Triangle")


class Neurons(nn.Module):
    """A convolution, its batch normalization and the neurons of `contender`, over time."""

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
    """A residual block: two :class:`Neurons` in a row, plus the input or a shortcut of it."""

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
    """A linear layer on the mean over the pixels: ``[T, B, C, H, W]`` to ``[T, B, classes]``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.linear(images.mean((-2, -1))))


def _neuron(contender: str) -> nn.Module:
    """The neurons of `contender`: ReLU, IF of hibana with a surrogate, or IF of a peer."""
    if contender.startswith("relu"):
        return nn.ReLU()
    if contender.startswith("hibana"):
        surrogate = getattr(hb.surrogate, contender.partition("+")[2] or "Step")
        return hb.IF(1.0, surrogate(), detach_reset=True)
    from benchmarks import peers

    return peers.PEERS[contender].layer(peers.CASES["step"]).module


def _vgg(contender: str) -> Iterator[nn.Module]:
    """Modules of the VGG network: pairs of convolutions with 64, 128 and 256 channels, and poolings."""
    pooling = hb.events.MaxPool2d if contender.startswith("hibana") else nn.MaxPool2d
    inputs = SHAPE[0]
    for outputs in VGG:
        yield Neurons(contender, inputs, outputs)
        yield Neurons(contender, outputs, outputs)
        yield hb.EachStep(pooling(2))
        inputs = outputs
    yield MeanOfSteps(inputs)


def _residual(contender: str) -> Iterator[nn.Module]:
    """Modules of the residual network: a convolution and six blocks with 32 to 128 channels."""
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
    """Applies `net` to the same image at each step; for ``relu-last`` the copies are channels-last."""

    def __init__(self, net: nn.Sequential, contender: str) -> None:
        super().__init__()
        self.net, self.channels_last = net, contender == "relu-last"

    def forward(self, image: Tensor) -> Tensor:
        inputs = image.expand(STEPS, *image.shape)
        if self.channels_last:
            channels_last = inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            inputs = channels_last.view(STEPS, len(image), *image.shape[1:])
        return cast(Tensor, self.net(inputs))


def build(name: str, contender: str, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """Network `name` with the neurons of `contender`, ``[batch, 3, 32, 32]`` to ``[T, batch, classes]``."""
    torch.manual_seed(0)
    net = nn.Sequential(*NETWORKS[name][1](contender))
    if weights is not None:
        net.load_state_dict(weights, strict=False)  # a peer's neuron may have further buffers
    if contender == "relu-last":
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Images(net, contender)


def sample() -> tuple[Tensor, Tensor]:
    """A batch of normally distributed images, and a random class for each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, *SHAPE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


@torch.no_grad()
def tune_weights(
    name: str, contender: str, image: Tensor, rate: float
) -> tuple[dict[str, Tensor], list[float]]:
    """Returns weights with which each layer of neurons fires at `rate`, and the rates of the layers."""
    net = cast(Images, build(name, contender))
    rates: list[float] = []

    def tune_shift(part: Neurons, inputs: tuple[Tensor, ...]) -> None:
        """Finds the shift of the normalization by bisection; sets its running statistics to the batch's."""
        low, high = -3.0, 3.0
        below = part.below(*inputs)
        part.norm.momentum = 1.0
        part.below(*inputs)
        part.norm.momentum = 0.1
        for _ in range(14):
            shift = (low + high) / 2
            firing = float(part.neurons(below + shift).mean())
            low, high = (low, shift) if firing > rate else (shift, high)
        part.norm.bias.fill_(shift)
        rates.append(firing)

    for part in net.modules():
        if isinstance(part, Neurons):
            part.register_forward_pre_hook(tune_shift)
    net(image)
    return net.net.state_dict(), rates


def measure_network(name: str, contenders: list[str], rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Times the contenders alternately; rows have the median and the ratios to the ReLU networks."""
    hb.keep_memory()
    torch.set_flush_denormal(True)
    image, targets = sample()
    weights, firing = tune_weights(name, "hibana", image, RATE)
    rows = []
    for kind in ("training step", "inference"):
        nets = {
            contender: build(name, contender, weights).train(kind == "training step")
            for contender in contenders
        }
        call = partial(training_step, targets=targets) if kind == "training step" else inference
        calls = {contender: call(net, image) for contender, net in nets.items()}
        seconds: dict[str, list[float]] = {contender: [] for contender in calls}
        for call_ in calls.values():
            call_()
            call_()
        order = list(calls)
        for round_ in range(rounds):
            first = round_ % len(order)
            for contender in order[first:] + order[:first]:
                start = clock()
                calls[contender]()
                seconds[contender].append(clock() - start)
        for contender, times in seconds.items():
            ratios = {
                relu: statistics.median(a / b for a, b in zip(times, seconds[relu], strict=True))
                for relu in seconds
                if relu.startswith("relu")
            }
            columns = {"network": name, "rate": RATE, "rates": firing, "pass": kind, "contender": contender}
            summary = {"ms": 1e3 * statistics.median(times), "ms_low": 1e3 * min(times), "calls": rounds}
            rows.append({**columns, **summary, "of": ratios})
    return rows


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per network, which compares hibana with ReLU and the installed peers."""
    return {f"deep/{name}": partial(_measure_with_peers, name, 1 if quick else 15) for name in NETWORKS}


def _measure_with_peers(name: str, rounds: int) -> list[Row]:
    """Rows of one job: hibana with several surrogates, ReLU and the installed peers."""
    from benchmarks import peers

    usable, _ = peers.available()
    contenders = ["relu", "relu-last", *(f"hibana+{surrogate}" for surrogate in SURROGATES), *usable]
    return measure_network(name, contenders, rounds, time.perf_counter)


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: a table for each network and pass."""
    yield (
        f"[T={STEPS}, batch {BATCH}, {'x'.join(map(str, SHAPE))}], the same image at each step; each layer "
        f"fires at {RATE:.0%}. `relu-last` is the ReLU network with channels-last images.\n"
    )
    for (name, kind), group in grouped(rows, "network", "pass").items():
        yield f"{NETWORKS[name][0]}, {kind}:\n"
        lines = [
            [contender, number(row["ms"]), *(number(row["of"].get(relu)) for relu in ("relu", "relu-last"))]
            for contender, row in group.items()
        ]
        yield from table(["", "ms", "to relu", "to relu-last"], lines)


def main() -> None:
    """Measures one network and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--contenders", nargs="+", default=["relu", "relu-last", "hibana", "hibana+Box"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="processor time of all threads instead of wall time"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    rows = measure_network(options.network, options.contenders, options.rounds, clock)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{NETWORKS[options.network][0]}, firing {' '.join(f'{r:.3f}' for r in rows[0]['rates'])}")
    for row in rows:
        ratios = ", ".join(f"{ratio:.3f} of {contender}" for contender, ratio in row["of"].items())
        print(f"{row['pass']:14} {row['contender']:16} {row['ms']:8.1f} ms  {ratios}")


if __name__ == "__main__":
    sys.exit(main())
