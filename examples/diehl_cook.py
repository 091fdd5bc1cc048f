"""Learns scikit-learn's digits without labels, by STDP, like the network of Diehl and Cook.

    python examples/diehl_cook.py --seed 0 1 2 3 4

Neurons inhibit each other. The threshold of a neuron grows with its spikes. The weights of each neuron are
scaled to the same sum. Each neuron thereby learns one way to write a digit. Labels are used only at the end:
the class of a neuron is the class for which it spiked most often on the training set.

Source: Diehl & Cook (2015), Unsupervised learning of digit recognition using spike-timing-dependent
plasticity. Inhibition is direct and instantaneous here, not through a second population.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hibana as hb

STEPS, RATE, TOTAL = 100, 0.15, 6.0


class Competing(hb.Cell):
    """Leaky integrate-and-fire neurons that inhibit each other; each spike raises the neuron's threshold."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.inhibition = 4.0 * (1 - torch.eye(neurons))
        self.growth, self.threshold_decay = 0.02, 1 - 7e-6

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, theta_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, ...]:
        v = 0.95 * v_previous * (1 - s_previous) + input_ - s_previous @ self.inhibition
        spikes = hb.spike(v - 1 - theta_previous)
        return v, self.threshold_decay * theta_previous + self.growth * spikes, spikes


def encoded(images: Tensor) -> Tensor:
    """Returns random spikes ``[T, images, pixels]`` with rates proportional to the brightness."""
    return (torch.rand(STEPS, *images.shape) < RATE * images).float()


def learn(images: Tensor, neurons: int, epochs: int) -> tuple[nn.Linear, hb.OverTime, Tensor]:
    """Trains on one image after another; returns the linear layer, the neurons and their thresholds."""
    linear = nn.Linear(images.shape[1], neurons, bias=False).requires_grad_(False)
    nn.init.uniform_(linear.weight, 0.0, 0.3)
    layer = hb.OverTime(Competing(neurons))
    rule = hb.learn.STDP(
        linear, layer, tau_pre=5.0, tau_post=20.0, a_plus=0.01, a_minus=0.001, bounds=(0.0, 1.0)
    )
    rest = torch.zeros(1, neurons)
    theta, no_trace = rest, torch.zeros(1, images.shape[1])
    for _ in range(epochs):
        for image in images[torch.randperm(len(images))]:
            linear.weight *= TOTAL / linear.weight.sum(1, keepdim=True)
            linear.weight.clamp_(0.0, 1.0)
            state = (rest, theta, rest, no_trace, rest)
            _, (_, theta, *_) = rule(encoded(image[None]), state, return_state=True)
    layer.cell.growth, layer.cell.threshold_decay = 0.0, 1.0
    return linear, layer, theta


def counts(images: Tensor, linear: nn.Linear, layer: hb.OverTime, theta: Tensor) -> Tensor:
    """Returns the number of spikes of each neuron for each image, ``[images, neurons]``."""
    rest = torch.zeros(len(images), theta.shape[1])
    spikes, _ = hb.unroll(
        layer.cell, linear(encoded(images)), (rest, theta.expand_as(rest).contiguous(), rest)
    )
    return spikes.sum(0)


def run(neurons: int, epochs: int, seed: int) -> tuple[float, float]:
    """Returns the accuracy on 360 test images, and the seconds per training image."""
    torch.manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    start = time.perf_counter()
    trained = learn(images[360:], neurons, epochs)
    seconds = (time.perf_counter() - start) / (epochs * len(images[360:]))
    spike_counts, one_hot = counts(images[360:], *trained), nn.functional.one_hot(labels[360:]).float()
    classes = (spike_counts.T @ one_hot / one_hot.sum(0)).argmax(1)  # [neurons]
    members = nn.functional.one_hot(classes, 10).float()
    votes = counts(images[:360], *trained) @ members / members.sum(0).clamp(min=1)
    return (votes.argmax(1) == labels[:360]).float().mean().item(), seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--neurons", type=int, default=100)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    arguments = options.parse_args()
    for seed in arguments.seed:
        right, seconds = run(arguments.neurons, arguments.epochs, seed)
        print(f"seed {seed}: {right:.1%} (chance 10%), {1e3 * seconds:.2f} ms per image", flush=True)


if __name__ == "__main__":
    main()
