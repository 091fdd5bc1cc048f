"""Which lag is it? A task that only delays solve.

    python examples/coincidences.py --delays --seed 0

Two channels fire at random, the second as the first did some steps before: 3, 7, 12 or 17 of them, the class.
The neurons forget everything at each step (``tau=1``), so that a network without delays sees no lag at all.
"""

import argparse

import torch
from torch import nn

import hibana as hb
from hibana.train import activity, scale_to_rate

LAGS, STEPS, RATE, HIDDEN, LONGEST = (3, 7, 12, 17), 100, 0.1, 64, 20


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
    batches = 2000 // 64
    delays = [p for name, p in net.named_parameters() if name.endswith("delay")]
    others = [p for name, p in net.named_parameters() if not name.endswith("delay")]
    groups = [{"params": others, "lr": 1e-2}, {"params": delays, "lr": 1e-1, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups if delays else groups[:1])
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, asked.epochs * batches)
    for step in range(asked.epochs * batches):
        hb.narrow_delays(net, min(1.0, 1.25 * step / (asked.epochs * batches)))
        inputs, labels = sequences(64, generator)
        outputs, spikes = activity(net, inputs)
        excess = sum(hb.loss.rate_penalty(layer, 0.1) for layer in spikes.values())
        loss = objective(outputs, labels) + 0.1 * excess
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        inputs, labels = sequences(2000, torch.Generator().manual_seed(asked.seed + 10_000))
        outputs, spikes = activity(net.eval(), inputs)
    (rate,) = spikes.rates().values()
    kind = "delays that are learned" if asked.delays else "no delays"
    print(
        f"{kind}, seed {asked.seed}: {objective.accuracy(outputs, labels):.1%} at {rate:.1%} firing "
        f"(chance {1 / len(LAGS):.1%})"
    )


if __name__ == "__main__":
    main()
