"""Training loop of the examples: a loss, a penalty on firing rates, AdamW and a one-cycle schedule."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb
from hibana.train import activity, spiking_layers, weight_decay_groups

Batch = tuple[Tensor, Tensor]
"""Inputs ``[T, batch, features]`` and labels ``[batch]``."""


def train(
    net: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    count: int,
    objective: hb.loss.Objective,
    *,
    epochs: int,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
    most_rate: float = 0.1,
    delay_rate: float = 1e-1,
    each_step: Callable[[float], None] | None = None,
    each_epoch: Callable[[int], None] | None = None,
) -> None:
    """Trains a spiking or an ordinary network.

    Args:
        net: the network, from ``[T, batch, features]`` to the objective's outputs.
        batches: returns the batches of the epoch with a given number.
        count: number of batches per epoch.
        objective: loss of the outputs.
        epochs: passes over the training set.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: weight decay of AdamW, for weights only.
        most_rate: firing rate, in spikes per neuron and step, above which a layer is penalized.
        delay_rate: peak learning rate of delays, whose unit is a time step.
        each_step: called before each batch with the completed fraction of the training.
        each_epoch: called after each epoch with its number.
    """
    delays = [p for name, p in net.named_parameters() if name.endswith("delay")]
    delay_ids = {id(p) for p in delays}
    groups = [
        {**group, "params": [p for p in group["params"] if id(p) not in delay_ids], "lr": learning_rate}
        for group in weight_decay_groups(net, weight_decay)
    ]
    if delays:
        groups.append({"params": delays, "lr": delay_rate, "weight_decay": 0.0})
    spiking = bool(spiking_layers(net))

    def loss_of(inputs: Tensor, labels: Tensor) -> Tensor:
        outputs, spikes = activity(net, inputs) if spiking else (net(inputs), {})
        loss = objective(outputs, labels)
        return loss + 0.1 * sum(hb.loss.rate_penalty(layer, most_rate) for layer in spikes.values())

    descend(net, loss_of, batches, count, groups, epochs=epochs, each_step=each_step, each_epoch=each_epoch)


def descend(
    net: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Callable[[int], Iterable[Batch]],
    count: int,
    groups: list[dict[str, Any]],
    *,
    epochs: int,
    each_step: Callable[[float], None] | None = None,
    each_epoch: Callable[[int], None] | None = None,
    **cycle: float,
) -> None:
    """Minimizes a loss with AdamW and a one-cycle schedule.

    Args:
        net: the network.
        loss_of: returns the loss of a batch from its inputs and labels.
        batches: returns the batches of the epoch with a given number.
        count: number of batches per epoch.
        groups: parameter groups, each with its peak learning rate ``lr``.
        epochs: passes over the training set.
        each_step: called before each batch with the completed fraction of the training.
        each_epoch: called after each epoch with its number.
        cycle: further options of ``OneCycleLR``.
    """
    optimizer = torch.optim.AdamW(groups, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, epochs * count, **cycle)
    for epoch in range(epochs):
        net.train()
        for step, (inputs, labels) in enumerate(batches(epoch)):
            if each_step is not None:
                each_step((epoch * count + step) / (epochs * count))
            loss = loss_of(inputs, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if each_epoch is not None:
            each_epoch(epoch)


@torch.no_grad()
def accuracy(
    net: nn.Module, batches: Iterable[Batch], objective: hb.loss.Objective
) -> tuple[float, dict[str, float]]:
    """Returns the accuracy of `net` on `batches`, and the firing rate of each spiking layer."""
    net.eval()
    spiking, right, total, rates = bool(spiking_layers(net)), 0.0, 0, {}
    for inputs, labels in batches:
        outputs, spikes = activity(net, inputs) if spiking else (net(inputs), None)
        right += float(objective.accuracy(outputs, labels)) * len(labels)
        total += len(labels)
        for name, rate in ({} if spikes is None else spikes.rates()).items():
            rates[name] = rates.get(name, 0.0) + rate * len(labels)
    return right / total, {name: rate / total for name, rate in rates.items()}


def keep(path: Path | None, row: dict[str, Any]) -> None:
    """Appends a result to the JSON-lines file at `path`; does nothing if `path` is ``None``."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
