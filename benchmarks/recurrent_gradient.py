"""What the gradient through a recurrent layer's synapses does to training: MNIST-1D as 40 values.

    python -m benchmarks.recurrent_gradient --scale 0.5 --seed 0

1-128-10, LIF with recurrent weights, trained on 3,600 sequences for 12 epochs; prints the accuracy on the 400
that validate, the firing rate, and the norm of the gradient before it is clipped to 1. ``--spread`` gives
each neuron a time constant of its own, spread over 2 to 50 steps and learned; ``--width`` draws recurrent
weights from a normal distribution of ``width / sqrt(128)`` instead of torch's even one (0.58). ``--spikes``
takes spoken digits instead, delta-coded.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import hibana as hb
from hibana.data import MNIST1D, SpokenDigits
from hibana.nn.encode import delta
from hibana.train import activity, scale_to_rate

NEURONS, EPOCHS, BATCH, RATE = 128, 12, 64, 3e-3
START = 0.1
"""Spikes per neuron and step before training."""


def network(asked: argparse.Namespace) -> nn.Module:
    """The network that the options describe."""
    shared = {"surrogate": asked.surrogate, "detach_reset": True}
    if asked.spread:
        cell = hb.LIFCell(tau=hb.log_uniform(2, 50, NEURONS), learn="tau", **shared)
    else:
        cell = hb.LIFCell(tau=20.0, **shared)
    recurrent = hb.Recurrent(cell, NEURONS, gradient_scale=asked.scale)
    if asked.width is not None:
        nn.init.normal_(recurrent.recurrent.weight, 0.0, asked.width / math.sqrt(NEURONS))
    return nn.Sequential(
        nn.Linear(26 if asked.spikes else 1, NEURONS), recurrent, hb.Linear(NEURONS, 10), hb.LI(tau=20.0)
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--scale", type=float, default=0.5, help="gradient_scale of hb.Recurrent")
    options.add_argument("--surrogate", default="ATan")
    options.add_argument("--spread", action="store_true")
    options.add_argument("--width", type=float)
    options.add_argument("--spikes", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(asked.seed)
    samples = SpokenDigits(steps=40) if asked.spikes else MNIST1D()
    samples.setup()

    def coded(values: Tensor) -> Tensor:
        sequence = values.transpose(0, 1).contiguous()
        return delta(sequence, 0.25) if asked.spikes else sequence

    inputs, labels = coded(samples.training.inputs).flatten(2), samples.training.labels
    net, objective = network(asked), hb.loss.MembraneMean()
    scale_to_rate(net, inputs[:, :256], START)
    _, begun = activity(net, inputs[:, :256])
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    norms = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            outputs, spikes = activity(net, inputs[:, batch])
            excess = sum(hb.loss.rate_penalty(layer, 0.15) for layer in spikes.values())
            loss = objective(outputs, labels[batch]) + 0.1 * excess
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), 1.0).item())
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        held = samples.validation
        outputs, spikes = activity(net.eval(), coded(held.inputs).flatten(2))
    found, (rate,) = torch.tensor(norms), spikes.rates().values()
    print(
        f"{objective.accuracy(outputs, held.labels):.1%} at {rate:.1%} firing, "
        f"{begun.rates()['1']:.1%} before training; "
        f"gradient norm {found.median():.1f}, {found.quantile(0.99):.0f} in the worst hundredth, "
        f"{found.max():.0f} at most"
    )


if __name__ == "__main__":
    main()
