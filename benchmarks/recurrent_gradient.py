"""Trains a recurrent network on MNIST-1D with a scaled gradient through its recurrent synapses.

    python -m benchmarks.recurrent_gradient --scale 0.5 --seed 0

The network 1-128-10 has LIF neurons with recurrent weights. It trains on 3,600 sequences of 40 values for 12
epochs. The program prints the accuracy on 400 validation sequences, the firing rate, and the norm of the
gradient before it is clipped to 1. ``--spread`` learns a time constant per neuron, initially spread over 2 to
50 steps. ``--width`` draws the recurrent weights from a normal distribution with standard deviation ``width /
sqrt(128)`` instead of torch's uniform distribution (0.58). ``--spikes`` uses delta-coded spoken digits.
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
INITIAL_RATE = 0.1
"""Spikes per neuron and step before training."""


def network(options: argparse.Namespace) -> nn.Module:
    """Builds the network for the command-line options."""
    shared = {"surrogate": options.surrogate, "detach_reset": True}
    if options.spread:
        cell = hb.LIFCell(tau=hb.log_uniform(2, 50, NEURONS), learn="tau", **shared)
    else:
        cell = hb.LIFCell(tau=20.0, **shared)
    recurrent = hb.Recurrent(cell, NEURONS, gradient_scale=options.scale)
    if options.width is not None:
        nn.init.normal_(recurrent.recurrent.weight, 0.0, options.width / math.sqrt(NEURONS))
    return nn.Sequential(
        nn.Linear(26 if options.spikes else 1, NEURONS), recurrent, hb.Linear(NEURONS, 10), hb.LI(tau=20.0)
    )


def main() -> None:
    """Trains the network and prints the accuracy, the firing rates and the gradient norms."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.5, help="gradient_scale of hb.Recurrent")
    parser.add_argument("--surrogate", default="ATan")
    parser.add_argument("--spread", action="store_true")
    parser.add_argument("--width", type=float)
    parser.add_argument("--spikes", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    samples = SpokenDigits(steps=40) if options.spikes else MNIST1D()
    samples.setup()

    def encode(values: Tensor) -> Tensor:
        sequence = values.transpose(0, 1).contiguous()
        return delta(sequence, 0.25) if options.spikes else sequence

    inputs, labels = encode(samples.training.inputs).flatten(2), samples.training.labels
    net, objective = network(options), hb.loss.MembraneMean()
    scale_to_rate(net, inputs[:, :256], INITIAL_RATE)
    _, initial_spikes = activity(net, inputs[:, :256])
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    norms_of_steps = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            outputs, spikes = activity(net, inputs[:, batch])
            excess = sum(hb.loss.rate_penalty(layer, 0.15) for layer in spikes.values())
            loss = objective(outputs, labels[batch]) + 0.1 * excess
            optimizer.zero_grad()
            loss.backward()
            norms_of_steps.append(nn.utils.clip_grad_norm_(net.parameters(), 1.0).item())
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        validation = samples.validation
        outputs, spikes = activity(net.eval(), encode(validation.inputs).flatten(2))
    norms, (rate,) = torch.tensor(norms_of_steps), spikes.rates().values()
    print(
        f"{objective.accuracy(outputs, validation.labels):.1%} at {rate:.1%} firing, "
        f"{initial_spikes.rates()['1']:.1%} before training; "
        f"gradient norm {norms.median():.1f}, {norms.quantile(0.99):.0f} in the worst hundredth, "
        f"{norms.max():.0f} at most"
    )


if __name__ == "__main__":
    main()
