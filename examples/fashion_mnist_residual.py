"""Trains a residual spiking network on Fashion-MNIST, four time steps of each image.

    python examples/fashion_mnist_residual.py --seed 0 1 2

First a network of the same layers learns with numbers in the place of time: each neuron gives at once what
four steps of a constant current make an integrate-and-fire neuron count. Compiled by Inductor (which takes a
C++ compiler), and half in bfloat16 (``--bfloat16``) on a processor that multiplies it, that is six times as
fast there as four steps. Then its weights go on to learn as spiking neurons', from the labels and from what
the first network says. Validated on 5,000 of the training images; the test images are looked at once, by what
the last epoch made.

The data are the four .gz files that https://github.com/zalandoresearch/fashion-mnist describes. Sources: Bu
et al. (2022), *Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks*,
for neurons that count at once; Rathi et al. (2020), *Enabling deep spiking neural networks with hybrid
conversion and spike timing dependent backpropagation*, for going on from there; Fang et al. (2021), *Deep
residual learning in spiking neural networks*, for sums of spikes; Hinton, Vinyals & Dean (2015), *Distilling
the knowledge in a neural network*; DeVries & Taylor (2017), *Improved regularization of convolutional neural
networks with cutout*.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fashion_mnist_from_ann import images
from torch import Tensor, nn
from torch.nn import functional
from training import accuracy, descend, keep

import hibana as hb
from hibana.train import activity, weight_decay_groups
from hibana.train.augment import augment_batch

STEPS, BATCH, HELD_BACK, CLASSES = 4, 128, 5000, 10
MOST_ACTIVE = 0.12
"""Spikes per neuron and step, above which a layer pays."""
SMOOTHING = 0.1
HOLE = 7
"""Pixels along the side of the square that half of the images lack."""
half = partial(torch.autocast, "cpu", torch.bfloat16)
"""Products in bfloat16, with ``enabled``: four times as slow on a processor that does not multiply it."""


class Counted(nn.Module):
    """What STEPS of this current make a neuron count, for each step; the gradient is that of the clipping."""

    active: Tensor
    """The mean of the last call."""

    def forward(self, current: Tensor) -> Tensor:
        clipped = current.clamp(0, 1)
        counted = clipped + ((STEPS * clipped + 0.5).floor() / STEPS - clipped).detach()
        self.active = counted.float().mean()
        return counted


def at_once(inputs: int, outputs: int) -> nn.Module:
    """Convolution, normalization, and neurons that count at once: ``[B, C, H, W]``."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), Counted()
    )


def over_time(inputs: int, outputs: int) -> nn.Module:
    """The same with neurons that spike: ``[T, B, C, H, W]``."""
    below = nn.Sequential(hb.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
    neurons = hb.IF(surrogate="Triangle", detach_reset=True, reset="subtract")
    return hb.Normalized(hb.EachStep(below), neurons)


class Block(nn.Module):
    """What comes in, and what two layers make of it, added."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(layer(width, width), layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return hb.events.add(self.path(x), x)


class Mean(nn.Module):
    """Over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def network(spiking: bool, width: int) -> nn.Sequential:
    """Stages of `width`, twice and four times as many channels, of 28, 14 and 7 pixels; to classes.

    One that spikes takes ``[T, B, 1, 28, 28]`` and sums over time; the other takes ``[B, 1, 28, 28]``, and
    what it gives is of one step.
    """
    layer = over_time if spiking else at_once

    def pooling() -> nn.Module:
        return hb.EachStep(hb.events.MaxPool2d(2)) if spiking else nn.MaxPool2d(2)

    return nn.Sequential(
        layer(1, width), pooling(),
        layer(width, 2 * width), Block(layer, 2 * width), pooling(),
        layer(2 * width, 4 * width), Block(layer, 4 * width), Block(layer, 4 * width), Mean(),
        hb.Linear(4 * width, CLASSES), hb.LI() if spiking else nn.Unflatten(0, (1, -1)),
    )  # fmt: skip


@torch.no_grad()
def handed_on(counting: nn.Module, spiking: nn.Module) -> None:
    """Gives `spiking` all numbers of `counting`; a count is rounded, which half a spike more brings about."""
    numbers = zip(counting.state_dict().values(), spiking.state_dict().values(), strict=True)
    for given, own in numbers:
        own.copy_(given)
    for module in spiking.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias += 0.5 / STEPS


def varied(x: Tensor) -> Tensor:
    """Images mirrored and moved by a pixel at random; half of them lack a square."""
    rows, columns = (
        (torch.arange(side) - torch.randint(side, (len(x), 1))).abs() <= HOLE // 2 for side in x.shape[2:]
    )
    lacking = rows[:, None, :, None] & columns[:, None, None, :] & (torch.rand(len(x), 1, 1, 1) < 0.5)
    return augment_batch(x, "flip-shift").masked_fill(lacking, 0.0)


def train(
    net: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    epochs: int,
    learning_rate: float,
    each_epoch: Callable[[int], None],
) -> None:
    """One cycle over `epochs` of `data`, images and labels."""
    x, y = data
    count = len(x) // BATCH

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(x))[: count * BATCH].view(-1, BATCH):
            yield varied(x[chosen]), y[chosen]

    groups = [{**group, "lr": learning_rate} for group in weight_decay_groups(net, 0.05)]
    cycle = {"pct_start": 0.2, "div_factor": 5, "final_div_factor": 100}
    descend(net, loss_of, batches, count, groups, epochs=epochs, each_epoch=each_epoch, **cycle)


def train_counting(
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    each_epoch: Callable[[int], None],
    bfloat16: bool,
) -> nn.Module:
    """Trains `net`, whose neurons count at once; what it gives back is the same network, compiled."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(net, dynamic=False)
    neurons = [module for module in net.modules() if isinstance(module, Counted)]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with half(enabled=bfloat16):
            scores = compiled(last(x))[-1].float()
        too_active = sum((each.active - MOST_ACTIVE).clamp(min=0) for each in neurons)
        return functional.cross_entropy(scores, y, label_smoothing=SMOOTHING) + too_active

    train(net, loss_of, data, epochs, 3e-3, each_epoch)
    return compiled.eval()


def last(x: Tensor) -> Tensor:
    """Images, channels last in memory."""
    return x.to(memory_format=torch.channels_last)


def train_spiking(
    net: nn.Module,
    teacher: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    each_epoch: Callable[[int], None],
    bfloat16: bool,
) -> None:
    """Trains `net`, whose neurons spike, half by the labels and half by what `teacher` says."""

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), half(enabled=bfloat16):
            said = teacher(last(x))[-1].float().softmax(1)
        outputs, spikes = activity(net, shown(x))
        scores = outputs[-1] / STEPS
        by_labels = functional.cross_entropy(scores, y, label_smoothing=SMOOTHING)
        too_active = sum(hb.loss.rate_penalty(layer, MOST_ACTIVE) for layer in spikes.values())
        return (by_labels + functional.cross_entropy(scores, said)) / 2 + 0.1 * too_active

    train(net, loss_of, data, epochs, 5e-4, each_epoch)


def shown(x: Tensor) -> Tensor:
    """Images at each of STEPS, ``[T, B, 1, H, W]``."""
    return x.expand(STEPS, *x.shape)


def measured(
    net: nn.Module, inputs_of: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]
) -> tuple[float, list[float]]:
    """The part of the images that `net` names, and the firing rate of each of its spiking layers."""
    batches = zip(*(part.split(500) for part in data), strict=True)
    found, rates = accuracy(net, ((inputs_of(x), y) for x, y in batches), hb.loss.MembraneLast())
    return round(found, 4), [round(rate, 3) for rate in rates.values()]


def run(folder: Path, width: int, epochs: tuple[int, int], seed: int, bfloat16: bool) -> dict[str, Any]:
    """Trains both networks from one `seed`, and says what came of it."""
    torch.manual_seed(seed)
    begun = time.perf_counter()
    x, y = images(folder, "train")
    order = torch.randperm(len(x))
    held_back, learned = ((x[i], y[i]) for i in (order[:HELD_BACK], order[HELD_BACK:]))
    validation: list[float] = []

    def say(net: nn.Module, inputs_of: Callable[[Tensor], Tensor], epoch: int) -> None:
        found, rates = measured(net, inputs_of, held_back)
        validation.append(found)
        what, minutes = "spiking" if rates else "counting", (time.perf_counter() - begun) / 60
        print(
            f"seed {seed}, {what} {epoch + 1}: validation {found:.2%} {rates} {minutes:.0f} min", flush=True
        )

    counting, spiking = network(False, width), network(True, width)
    teacher = train_counting(counting, learned, epochs[0], partial(say, counting, last), bfloat16)
    handed_on(counting, spiking)
    train_spiking(spiking, teacher, learned, epochs[1], partial(say, spiking, shown), bfloat16)
    found, rates = measured(spiking, shown, images(folder, "t10k"))
    return {
        "network": f"residual, {width} channels",
        "parameters": sum(parameter.numel() for parameter in spiking.parameters()),
        "epochs": list(epochs),
        "seed": seed,
        "validation": validation[-epochs[1] :],
        "test": found,
        "rates": rates,
        "minutes": round((time.perf_counter() - begun) / 60),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--width", type=int, default=48, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, nargs=2, default=[24, 3], help="counting, and spiking")
    parser.add_argument("--bfloat16", action="store_true", help="where the processor multiplies it (AMX)")
    parser.add_argument("--record", type=Path, help="a file that gets a line for each run")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    hb.keep_memory()
    for seed in arguments.seed:
        row = run(arguments.data, arguments.width, tuple(arguments.epochs), seed, arguments.bfloat16)
        print(row, flush=True)
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
