"""Tests the memory of neurons: the network must name a symbol many steps after it was shown.

    python examples/recall.py --neuron AdLIF --delay 200 --seed 0 1 2

One of eight channels, the symbol, fires for five steps. Then all eight channels fire at random, with
probability 0.01 per step. At the end a ninth channel fires for five steps; the potential of the readout in
the last step must name the symbol. The network has 128 neurons without recurrent weights. It is trained for
60 epochs of 2,000 new sequences and tested on 2,000 others.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training import accuracy, keep, train

import hibana as hb
from hibana.train import scale_to_rate

SYMBOLS, SHOWN, HIDDEN, BATCHES = 8, 5, 128, 31


def sequences(count: int, delay: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns spikes ``[T, count, 9]`` with ``T = delay + 10``, and the symbols ``[count]``."""
    labels = torch.randint(SYMBOLS, (count,), generator=generator)
    spikes = (torch.rand(delay + 2 * SHOWN, count, SYMBOLS + 1, generator=generator) < 0.01).float()
    spikes[:SHOWN] = 0.0
    spikes[..., SYMBOLS] = 0.0
    spikes[:SHOWN, torch.arange(count), labels] = 1.0
    spikes[-SHOWN:, :, SYMBOLS] = 1.0
    return spikes, labels


def neuron(name: str) -> nn.Module:
    """Returns 128 neurons with different initial time constants, which are trained."""
    if name == "AdLIF":
        return hb.OverTime(hb.AdLIFCell.spread(HIDDEN, surrogate="ATan", detach_reset=True))
    shared = {"tau": hb.log_uniform(5, 60, HIDDEN), "surrogate": "ATan", "detach_reset": True}
    if name == "ALIF":
        slow = hb.log_uniform(30, 300, HIDDEN)
        return hb.ALIF(tau_adaptation=slow, learn=("tau", "tau_adaptation"), **shared)
    return hb.LIF(learn="tau", **shared)


def run(name: str, delay: int, epochs: int, seed: int) -> dict[str, Any]:
    """Trains one network; returns the result as a JSON row."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(SYMBOLS + 1, HIDDEN), neuron(name), nn.Linear(HIDDEN, SYMBOLS), hb.LI(tau=5.0)
    )
    objective = hb.loss.MembraneLast()
    scale_to_rate(net, sequences(256, delay, generator)[0], 0.05, each_neuron=True)
    train(
        net,
        lambda _: (sequences(64, delay, generator) for _ in range(BATCHES)),
        BATCHES,
        objective,
        epochs=epochs,
    )
    test = sequences(2000, delay, torch.Generator().manual_seed(seed + 10_000))
    right, rates = accuracy(net, [test], objective)
    (rate,) = rates.values()
    return {
        "task": "recall",
        "network": name,
        "steps": delay,
        "epochs": epochs,
        "seed": seed,
        "test": round(right, 4),
        "rates": [round(rate, 4)],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--neuron", choices=("LIF", "ALIF", "AdLIF"), default="AdLIF")
    options.add_argument("--delay", type=int, default=40, help="steps from the symbol to the question")
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--record", type=Path, help="append a JSON line per seed to this file")
    arguments = options.parse_args()
    for seed in arguments.seed:
        row = run(arguments.neuron, arguments.delay, arguments.epochs, seed)
        print(
            f"{arguments.neuron}, {arguments.delay} steps, seed {seed}: "
            f"{row['test']:.1%} at {row['rates'][0]:.1%} firing (chance {1 / SYMBOLS:.1%})",
            flush=True,
        )
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
