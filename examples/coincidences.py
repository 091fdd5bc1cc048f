"""Classifies the time lag between two random spike trains, which a network can do only with delays.

    python examples/coincidences.py --delays --seed 0 1 2

The first channel fires at random. The second channel repeats the first 3, 7, 12 or 17 steps later; the lag is
the class. The neurons have no memory (``tau=1``), so a network without delays cannot compare the channels.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training import accuracy, keep, train

import hibana as hb
from hibana.train import scale_to_rate

LAGS, STEPS, RATE, HIDDEN, LONGEST, BATCHES = (3, 7, 12, 17), 100, 0.1, 64, 20, 31


def sequences(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns spikes ``[100, count, 2]`` and the class of each lag, ``[count]``."""
    labels = torch.randint(len(LAGS), (count,), generator=generator)
    first = (torch.rand(STEPS + LONGEST, count, generator=generator) < RATE).float()
    lags = torch.tensor(LAGS)[labels]
    at = torch.arange(LONGEST, LONGEST + STEPS)
    second = first[at[:, None] - lags, torch.arange(count)]
    return torch.stack([first[LONGEST:], second], 2), labels


def narrow_or_fix_delays(net: nn.Module, progress: float) -> None:
    """Narrows the delays during the first half of the training, then rounds them to whole steps.

    `progress` is the completed fraction of the training.
    """
    if progress < 0.5:
        hb.narrow_delays(net, min(1.0, 2.2 * progress))
    else:
        hb.fix_delays(net)


def run(delays: bool, epochs: int, seed: int) -> dict[str, Any]:
    """Trains one network; returns the result as a JSON row."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    synapses = hb.DelayedLinear(2, HIDDEN, LONGEST) if delays else hb.Linear(2, HIDDEN)
    neurons = hb.LIF(tau=1.0, surrogate="ATan", detach_reset=True)
    net = nn.Sequential(synapses, neurons, hb.Linear(HIDDEN, len(LAGS)), hb.LI(tau=50.0))
    objective = hb.loss.MembraneMean()
    hb.narrow_delays(net, 1.0)  # scale the weights for spikes that arrive in one step
    scale_to_rate(net, sequences(256, generator)[0], 0.05)
    train(
        net,
        lambda _: (sequences(64, generator) for _ in range(BATCHES)),
        BATCHES,
        objective,
        epochs=epochs,
        each_step=lambda progress: narrow_or_fix_delays(net, progress),
    )
    test = sequences(2000, torch.Generator().manual_seed(seed + 10_000))
    right, rates = accuracy(net, [test], objective)
    return {
        "task": "coincidences",
        "network": "delays" if delays else "no delays",
        "steps": STEPS,
        "epochs": epochs,
        "seed": seed,
        "test": round(right, 4),
        "rates": [round(rate, 4) for rate in rates.values()],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--delays", action="store_true", help="hb.DelayedLinear instead of hb.Linear")
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    options.add_argument("--record", type=Path, help="append a JSON line per seed to this file")
    arguments = options.parse_args()
    for seed in arguments.seed:
        row = run(arguments.delays, arguments.epochs, seed)
        print(
            f"{row['network']}, seed {seed}: {row['test']:.1%} at {row['rates'][0]:.1%} firing "
            f"(chance {1 / len(LAGS):.1%})",
            flush=True,
        )
        keep(arguments.record, row)


if __name__ == "__main__":
    main()
