"""Trains a recurrent network with a compiled step and with the reference loop, to compare the results.

A compiled step adds numbers in another order, so two trainings diverge after the first spike that differs by
rounding. Over several seeds, the test accuracy, the loss of the last epoch and the firing rate must still be
the same. Only the backend differs between the trainings.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb

__all__ = ["DATA", "SEEDS", "jobs"]

Row = dict[str, Any]
SEEDS = (0, 1, 2)
DATA = ("digits", "spoken-digits")
_BACKENDS = ("auto", "reference")
_NEURONS, _BATCH, _EPOCHS, _RATE = 64, 64, 12, 2e-3


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per data set, which trains with both backends for every seed."""
    epochs, seeds = (1, SEEDS[:1]) if quick else (_EPOCHS, SEEDS)
    return {
        f"training/recurrent/{data}": partial(_train_with_both_backends, data, seeds, epochs) for data in DATA
    }


def _train_with_both_backends(data: str, seeds: tuple[int, ...], epochs: int) -> list[Row]:
    return [_train(data, backend, seed, epochs) for seed in seeds for backend in _BACKENDS]


def _data(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs ``[samples, T, features]`` and labels for training and test.

    A time step of the input is a row of an image, or a frame of speech.
    """
    from hibana.data import Digits, SpokenDigits

    data = Digits() if name == "digits" else SpokenDigits()
    data.setup()
    training, test = ((part.inputs.float(), part.labels) for part in (data.training, data.test))
    return training, test


class _Net(nn.Module):
    """64 recurrent LIF neurons and a linear readout; returns its mean over time, and the spikes."""

    def __init__(self, features: int, backend: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.input = nn.Linear(features, _NEURONS)
        cell = hb.LIFCell(tau=4.0, surrogate=hb.surrogate.Box(), detach_reset=True)
        self.recurrent = hb.Recurrent(cell, _NEURONS, backend=backend)
        self.readout = nn.Linear(_NEURONS, 10)
        with torch.no_grad():
            self.input.weight *= 4.0  # the neurons fire from the start

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        spikes: Tensor = self.recurrent(self.input(inputs))
        return self.readout(spikes).mean(0), spikes


def _train(data: str, backend: str, seed: int, epochs: int) -> Row:
    """Trains for `epochs`; returns test accuracy, last loss, firing rate and seconds."""
    (inputs, labels), (test, test_labels) = _data(data)
    net = _Net(inputs.shape[-1], backend, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    start, losses = time.perf_counter(), []
    for _ in range(epochs):
        losses = []
        for indices in torch.randperm(len(inputs), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            scores, _ = net(inputs[indices].transpose(0, 1))
            loss = functional.cross_entropy(scores, labels[indices])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        scores, spikes = net(test.transpose(0, 1))
    return {
        "data": data,
        "contender": backend,
        "seed": seed,
        "epochs": epochs,
        "accuracy": float((scores.argmax(1) == test_labels).float().mean()),
        "loss": sum(losses) / len(losses),
        "firing": float(spikes.mean()),
        "seconds": seconds,
    }
