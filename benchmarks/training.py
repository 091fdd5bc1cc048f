"""Trains a network on Fashion-MNIST with hibana, ReLU and the peers: seconds per epoch and test accuracy.

The image is the input current of each of T steps. All contenders have the same network, initial weights,
order of images, optimizer, learning-rate schedule and activity penalty. The neuron is IF with a detached
reset. hibana uses the Box surrogate; most peers do not have it and use arctan or the most similar one. All
contenders compute the product of the image with the first weights only once. ``relu`` computes all T steps
like the spiking networks, ``relu-once`` only one step. Denormal numbers are flushed to zero for all
contenders, because they slow AdamW's averages down.
"""

import gzip
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from benchmarks import networks, peers

__all__ = ["jobs"]

Row = dict[str, Any]
_STEPS, _BATCH, _EPOCHS, _RATE, _PENALTY = 8, 128, 6, 1e-3, 1.0


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per contender and seed: five seeds for ``relu-once`` and hibana, one for the others."""
    return {
        f"training/{name}/{seed}": partial(
            _train, name, seed, 1 if quick else _EPOCHS, 1280 if quick else None
        )
        for name in ("relu", "relu-once", "hibana", "hibana-dense", *peers.PEERS)
        for seed in range(5 if name in ("relu-once", "hibana") and not quick else 1)
    }


def images(kind: str) -> tuple[Tensor, Tensor]:
    """Reads Fashion-MNIST's ``"train"`` or ``"t10k"`` images, ``[N, 784]`` in 0 to 1, and their classes.

    Raises:
        FileNotFoundError: if the folder ``HIBANA_FASHION_MNIST`` does not contain the idx files.
    """
    folder = Path(os.environ.get("HIBANA_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    pixels = _idx(folder / f"{kind}-images-idx3-ubyte.gz", header=16).reshape(-1, 784)
    classes = _idx(folder / f"{kind}-labels-idx1-ubyte.gz", header=8)
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(classes).long()


def _idx(path: Path, header: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()


class Net(nn.Module):
    """784-512-512-10 over T steps of one image; returns the mean output and the hidden layers' spikes."""

    def __init__(self, contender: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        kind = hb.Linear if contender == "hibana" else nn.Linear
        self.steps = 1 if contender == "relu-once" else _STEPS
        self.products = nn.ModuleList(kind(*size) for size in ((784, 512), (512, 512), (512, 10)))
        self.neurons = nn.ModuleList(_neuron(contender) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        first, second, readout = self.products
        spikes = [self.neurons[0](first(images).expand(self.steps, -1, -1))]
        spikes.append(self.neurons[1](second(spikes[0])))
        return readout(spikes[1]).mean(0), spikes


def _neuron(contender: str) -> nn.Module:
    """The neurons of `contender`: ReLU, IF of hibana with Box, or IF of a peer."""
    if contender.startswith("relu"):
        return nn.ReLU()
    if contender.startswith("hibana"):
        return hb.IF(1.0, hb.surrogate.Box(), detach_reset=True)
    return peers.PEERS[contender].layer(peers.CASES["atan"]).module


def _train(contender: str, seed: int, epochs: int, image_count: int | None) -> list[Row]:
    """Trains with the first `image_count` images, or with all if it is None; returns one row."""
    if contender == "hibana" and not networks.EVENTS:
        return [{"contender": contender, "error": networks.NO_EVENTS}]
    usable, reasons = peers.available()
    if contender in peers.PEERS and contender not in usable:
        return [{"contender": contender, "error": reasons[contender]}]
    hb.keep_memory()
    torch.set_flush_denormal(True)
    pixels, classes = (part[:image_count] for part in images("train"))
    net = Net(contender, seed)
    batches = len(pixels) // _BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for indices in torch.randperm(len(pixels), generator=generator)[: batches * _BATCH].view(-1, _BATCH):
            optimizer.zero_grad()
            scores, spikes = net(pixels[indices])
            loss = functional.cross_entropy(scores, classes[indices])
            if not contender.startswith("relu"):
                loss = loss + _PENALTY * sum(layer.sum() / layer.numel() for layer in spikes)
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)
    return [{"contender": contender, "seed": seed, "epochs": epochs, "epoch_s": seconds, **_evaluate(net)}]


@torch.inference_mode()
def _evaluate(net: Net) -> dict[str, float]:
    """Accuracy and mean firing rate of the hidden layers on the test images."""
    pixels, classes = images("t10k")
    correct, firing = 0, []
    start = time.perf_counter()
    for batch, batch_labels in zip(pixels.split(1000), classes.split(1000), strict=True):
        scores, spikes = net(batch)
        correct += int((scores.argmax(1) == batch_labels).sum())
        firing.append(torch.stack([layer.gt(0).float().mean() for layer in spikes]).mean())
    seconds = time.perf_counter() - start
    return {"accuracy": correct / len(pixels), "firing": float(torch.stack(firing).mean()), "test_s": seconds}
