"""Trains a residual spiking network on Fashion-MNIST with four time steps per image.

    python examples/fashion_mnist_residual.py --seed 0 1 2

The training has two stages. First, a counting network with the same layers is trained without time: each of
its neurons returns the firing rate of an integrate-and-fire neuron after four steps of a constant current. It
is compiled by Inductor, which needs a C++ compiler. With ``--bfloat16``, on a processor with bfloat16
products, a step of this stage is six times as fast as four time steps. Second, its weights are copied to the
spiking network, which is trained on the labels and on the outputs of the counting network. 5,000 training
images are used for validation. The test images are evaluated once, after the last epoch.

The data are the four .gz files that https://github.com/zalandoresearch/fashion-mnist describes. Sources: Bu
et al. (2022), *Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks*,
for counting neurons; Rathi et al. (2020), *Enabling deep spiking neural networks with hybrid conversion and
spike timing dependent backpropagation*, for the second stage; Fang et al. (2021), *Deep residual learning in
spiking neural networks*, for the residual sums; Hinton, Vinyals & Dean (2015), *Distilling the knowledge in a
neural network*; DeVries & Taylor (2017), *Improved regularization of convolutional neural networks with
cutout*.
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

STEPS, BATCH, HELD_OUT, CLASSES = 4, 128, 5000, 10
MOST_ACTIVE = 0.12
"""Firing rate in spikes per neuron and step above which a layer is penalized."""
SMOOTHING = 0.1
"""Label smoothing."""
HOLE = 7
"""Side of the square that cutout erases, in pixels."""
half = partial(torch.autocast, "cpu", torch.bfloat16)
"""Context in which products use bfloat16 if ``enabled``; four times slower without hardware support."""


class Counted(nn.Module):
    """Firing rate of an integrate-and-fire neuron after STEPS steps of a constant current.

    The gradient is that of clipping the current to 0 to 1.
    """

    mean_rate: Tensor
    """Mean output of the last call."""

    def forward(self, current: Tensor) -> Tensor:
        clipped = current.clamp(0, 1)
        counted = clipped + ((STEPS * clipped + 0.5).floor() / STEPS - clipped).detach()
        self.mean_rate = counted.float().mean()
        return counted


def counting_layer(inputs: int, outputs: int) -> nn.Module:
    """Returns convolution, batch normalization and counting neurons: ``[B, C, H, W]``."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), Counted()
    )


def spiking_layer(inputs: int, outputs: int) -> nn.Module:
    """Returns convolution, batch normalization and spiking neurons: ``[T, B, C, H, W]``."""
    below = nn.Sequential(hb.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
    neurons = hb.IF(surrogate="Triangle", detach_reset=True, reset="subtract")
    return hb.Normalized(hb.EachStep(below), neurons)


class Block(nn.Module):
    """Residual block: the input plus the output of two layers."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(layer(width, width), layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return hb.events.add(self.path(x), x)


class Mean(nn.Module):
    """Mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def network(spiking: bool, width: int) -> nn.Sequential:
    """Returns the spiking or the counting network.

    The three stages have `width`, 2 `width` and 4 `width` channels and images of 28, 14 and 7 pixels. The
    spiking network maps ``[T, B, 1, 28, 28]`` to running sums ``[T, B, classes]``. The counting network maps
    ``[B, 1, 28, 28]`` to ``[1, B, classes]``.
    """
    layer = spiking_layer if spiking else counting_layer

    def pooling() -> nn.Module:
        return hb.EachStep(hb.events.MaxPool2d(2)) if spiking else nn.MaxPool2d(2)

    return nn.Sequential(
        layer(1, width), pooling(),
        layer(width, 2 * width), Block(layer, 2 * width), pooling(),
        layer(2 * width, 4 * width), Block(layer, 4 * width), Block(layer, 4 * width), Mean(),
        hb.Linear(4 * width, CLASSES), hb.LI() if spiking else nn.Unflatten(0, (1, -1)),
    )  # fmt: skip


@torch.no_grad()
def copy_weights(counting: nn.Module, spiking: nn.Module) -> None:
    """Copies parameters and buffers from `counting` to `spiking`.

    Half a spike per image is added to each bias: counting neurons round, spiking neurons round down.
    """
    tensors = zip(counting.state_dict().values(), spiking.state_dict().values(), strict=True)
    for source, target in tensors:
        target.copy_(source)
    for module in spiking.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias += 0.5 / STEPS


def augmented(x: Tensor) -> Tensor:
    """Returns images mirrored and shifted by a pixel at random; a square is erased from half of them."""
    rows, columns = (
        (torch.arange(side) - torch.randint(side, (len(x), 1))).abs() <= HOLE // 2 for side in x.shape[2:]
    )
    erased = rows[:, None, :, None] & columns[:, None, None, :] & (torch.rand(len(x), 1, 1, 1) < 0.5)
    return augment_batch(x, "flip-shift").masked_fill(erased, 0.0)


def train(
    net: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    epochs: int,
    learning_rate: float,
    each_epoch: Callable[[int], None],
) -> None:
    """Trains `net` for `epochs` on `data` (images and labels) with a one-cycle schedule."""
    x, y = data
    count = len(x) // BATCH

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in torch.randperm(len(x))[: count * BATCH].view(-1, BATCH):
            yield augmented(x[indices]), y[indices]

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
    """Trains the counting network `net`; returns the same network compiled."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(net, dynamic=False)
    neurons = [module for module in net.modules() if isinstance(module, Counted)]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with half(enabled=bfloat16):
            scores = compiled(channels_last(x))[-1].float()
        too_active = sum((each.mean_rate - MOST_ACTIVE).clamp(min=0) for each in neurons)
        return functional.cross_entropy(scores, y, label_smoothing=SMOOTHING) + too_active

    train(net, loss_of, data, epochs, 3e-3, each_epoch)
    return compiled.eval()


def channels_last(x: Tensor) -> Tensor:
    """Returns the images with channels last in memory."""
    return x.to(memory_format=torch.channels_last)


def train_spiking(
    net: nn.Module,
    teacher: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    each_epoch: Callable[[int], None],
    bfloat16: bool,
) -> None:
    """Trains the spiking network `net`; labels and the outputs of `teacher` have equal weight in the loss."""

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), half(enabled=bfloat16):
            targets = teacher(channels_last(x))[-1].float().softmax(1)
        outputs, spikes = activity(net, over_time(x))
        scores = outputs[-1] / STEPS
        label_loss = functional.cross_entropy(scores, y, label_smoothing=SMOOTHING)
        too_active = sum(hb.loss.rate_penalty(layer, MOST_ACTIVE) for layer in spikes.values())
        return (label_loss + functional.cross_entropy(scores, targets)) / 2 + 0.1 * too_active

    train(net, loss_of, data, epochs, 5e-4, each_epoch)


def over_time(x: Tensor) -> Tensor:
    """Repeats images ``[B, 1, H, W]`` in all STEPS steps: ``[T, B, 1, H, W]``."""
    return x.expand(STEPS, *x.shape)


def evaluate(
    net: nn.Module, inputs_of: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]
) -> tuple[float, list[float]]:
    """Returns the accuracy of `net` on `data`, and the firing rate of each spiking layer."""
    batches = zip(*(part.split(500) for part in data), strict=True)
    fraction, rates = accuracy(net, ((inputs_of(x), y) for x, y in batches), hb.loss.MembraneLast())
    return round(fraction, 4), [round(rate, 3) for rate in rates.values()]


def run(folder: Path, width: int, epochs: tuple[int, int], seed: int, bfloat16: bool) -> dict[str, Any]:
    """Trains both networks; returns the result as a JSON row."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    x, y = images(folder, "train")
    order = torch.randperm(len(x))
    held_out, training = ((x[i], y[i]) for i in (order[:HELD_OUT], order[HELD_OUT:]))
    validation: list[float] = []

    def validate(net: nn.Module, inputs_of: Callable[[Tensor], Tensor], epoch: int) -> None:
        fraction, rates = evaluate(net, inputs_of, held_out)
        validation.append(fraction)
        kind, minutes = "spiking" if rates else "counting", (time.perf_counter() - start) / 60
        print(
            f"seed {seed}, {kind} {epoch + 1}: validation {fraction:.2%} {rates} {minutes:.0f} min",
            flush=True,
        )

    counting, spiking = network(False, width), network(True, width)
    teacher = train_counting(
        counting, training, epochs[0], partial(validate, counting, channels_last), bfloat16
    )
    copy_weights(counting, spiking)
    train_spiking(spiking, teacher, training, epochs[1], partial(validate, spiking, over_time), bfloat16)
    test, rates = evaluate(spiking, over_time, images(folder, "t10k"))
    return {
        "network": f"residual, {width} channels",
        "parameters": sum(parameter.numel() for parameter in spiking.parameters()),
        "epochs": list(epochs),
        "seed": seed,
        "validation": validation[-epochs[1] :],
        "test": test,
        "rates": rates,
        "minutes": round((time.perf_counter() - start) / 60),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--width", type=int, default=48, help="channels of the first stage")
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=[24, 3], help="of the counting and of the spiking network"
    )
    parser.add_argument("--bfloat16", action="store_true", help="for processors with bfloat16 products (AMX)")
    parser.add_argument("--record", type=Path, help="append a JSON line per run to this file")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    hb.keep_memory()
    for seed in arguments.seed:
        row = run(arguments.data, arguments.width, tuple(arguments.epochs), seed, arguments.bfloat16)
        print(row, flush=True)
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
