"""Trains a convolutional ReLU network on Fashion-MNIST and converts it into integrate-and-fire neurons.

    python examples/fashion_mnist_from_ann.py --data /usr/share/datasets/fashion-mnist

Prints the accuracy of the ReLU network on the test set, the layer-by-layer report on calibration images of
the training set, and the accuracy of the spiking network on all test images after 1, 2, 4, … T steps.
The data are the four .gz files that https://github.com/zalandoresearch/fashion-mnist describes.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hibana as hb
from hibana.convert import accuracy_over_time


def images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Returns images ``[N, 1, 28, 28]`` with values from 0 to 1, and their labels ``[N]``."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(labels.astype(np.int64))


def relu_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int = 128) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for indices in torch.randperm(len(x))[: len(x) // batch * batch].view(-1, batch):
            loss = nn.functional.cross_entropy(net(x[indices]), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / (len(x) // batch):.3f}", flush=True)
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    correct = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return correct / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128, help="time steps T (default: 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ann", type=Path, help="file of the trained ReLU network: read if it exists, else written"
    )
    parser.add_argument("--percentile", type=float, default=99.9)
    parser.add_argument("--images", type=int, default=10_000, help="number of test images (default: all)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    net = relu_network()
    if arguments.ann is not None and arguments.ann.exists():
        net.load_state_dict(torch.load(arguments.ann, weights_only=True))
        net.eval()
    else:
        start = time.perf_counter()
        train(net, *images(arguments.data, "train"), arguments.epochs)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        if arguments.ann is not None:
            torch.save(net.state_dict(), arguments.ann)

    x, y = images(arguments.data, "train")
    start = time.perf_counter()
    spiking, report = hb.from_ann(net, (x[:512], y[:512]), T=32, percentile=arguments.percentile)
    print(f"converted in {time.perf_counter() - start:.0f} s; on 512 calibration images:\n\n{report}\n")

    x, y = (part[: arguments.images] for part in images(arguments.data, "t10k"))
    start = time.perf_counter()
    expected = accuracy(net, x, y)
    print(f"ReLU network on {len(x)} test images: {expected:.2%}")
    over_time = accuracy_over_time(spiking, x, y, arguments.steps)
    for steps in sorted({2**n for n in range(arguments.steps.bit_length())} | {arguments.steps}):
        measured = float(over_time[steps - 1])
        print(f"spiking network, T={steps:<4} {measured:.2%}  ({100 * (measured - expected):+.2f} points)")
    print(f"evaluated in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
