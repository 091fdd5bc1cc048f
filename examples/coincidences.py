"""Which lag is it? A task that only delays solve.

    python examples/coincidences.py --delays --seed 0

Two channels fire at random, the second as the first did some steps before: 3, 7, 12 or 17 of them, the class.
The neurons forget everything at each step (``tau=1``), so that a network without delays sees no lag at all.
"""

import argparse

import torch
from torch import nn
from training import accuracy, train

import hibana as hb
from hibana.train import scale_to_rate

LAGS, STEPS, RATE, HIDDEN, LONGEST, BATCHES = (3, 7, 12, 17), 100, 0.1, 64, 20, 31


def sequences(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``[100, count, 2]`` spikes, and the class of the lag."""
    labels = torch.randint(len(LAGS), (count,), generator=generator)
    first = (torch.rand(STEPS + LONGEST, count, generator=generator) < RATE).float()
    lags = torch.tensor(LAGS)[labels]
    at = torch.arange(LONGEST, LONGEST + STEPS)
    second = first[at[:, None] - lags, torch.arange(count)]
    return torch.stack([first[LONGEST:], second], 2), labels


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--delays", action="store_true", help="hb.DelayedLinear in the place of hb.Linear")
    options.add_argument("--epochs", type=int, default=90)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.manual_seed(asked.seed)
    generator = torch.Generator().manual_seed(asked.seed)
    synapses = hb.DelayedLinear(2, HIDDEN, LONGEST) if asked.delays else hb.Linear(2, HIDDEN)
    neurons = hb.LIF(tau=1.0, surrogate="ATan", detach_reset=True)
    net = nn.Sequential(synapses, neurons, hb.Linear(HIDDEN, len(LAGS)), hb.LI(tau=50.0))
    objective = hb.loss.MembraneMean()
    hb.narrow_delays(net, 1.0)  # as spikes will arrive in the end, together or not
    scale_to_rate(net, sequences(256, generator)[0], 0.05)
    train(
        net,
        lambda _: (sequences(64, generator) for _ in range(BATCHES)),
        BATCHES,
        objective,
        epochs=asked.epochs,
        each_step=lambda over: hb.narrow_delays(net, min(1.0, 1.25 * over)),
    )
    tested = sequences(2000, torch.Generator().manual_seed(asked.seed + 10_000))
    right, rates = accuracy(net, [tested], objective)
    (rate,) = rates.values()
    kind = "delays that are learned" if asked.delays else "no delays"
    print(f"{kind}, seed {asked.seed}: {right:.1%} at {rate:.1%} firing (chance {1 / len(LAGS):.1%})")


if __name__ == "__main__":
    main()
