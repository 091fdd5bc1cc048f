"""Learns the digits of scikit-learn without labels, by STDP alone, as Diehl & Cook's network does.

    python examples/diehl_cook.py --seed 0 1 2 3 4

Neurons inhibit one another, a neuron's threshold grows with its spikes, weights of a neuron are scaled to one
sum: each neuron comes to stand for one way to write a digit. Labels come in last: a neuron's class is the one
for which it spiked most on the training set.

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
    """Leaky integrate-and-fire: others' spikes inhibit, and each spike raises the neuron's own threshold."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.others = 4.0 * (1 - torch.eye(neurons))
        self.growth, self.kept = 0.02, 1 - 7e-6

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, theta_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, ...]:
        v = 0.95 * v_previous * (1 - s_previous) + input_ - s_previous @ self.others
        spikes = hb.spike(v - 1 - theta_previous)
        return v, self.kept * theta_previous + self.growth * spikes, spikes


def encoded(images: Tensor) -> Tensor:
    """Images as random spikes, ``[T, images, pixels]``, as often as a pixel is bright."""
    return (torch.rand(STEPS, *images.shape) < RATE * images).float()


def learn(images: Tensor, neurons: int, epochs: int) -> tuple[nn.Linear, hb.OverTime, Tensor]:
    """Weights, neurons, and thresholds after all images, one at a time."""
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
    layer.cell.growth, layer.cell.kept = 0.0, 1.0
    return linear, layer, theta


def counts(images: Tensor, linear: nn.Linear, layer: hb.OverTime, theta: Tensor) -> Tensor:
    """How often each neuron spikes for each image."""
    rest = torch.zeros(len(images), theta.shape[1])
    spikes, _ = hb.unroll(
        layer.cell, linear(encoded(images)), (rest, theta.expand_as(rest).contiguous(), rest)
    )
    return spikes.sum(0)


def run(neurons: int, epochs: int, seed: int) -> tuple[float, float]:
    """The accuracy on 360 test images, and seconds a training image."""
    torch.manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    begun = time.perf_counter()
    learned = learn(images[360:], neurons, epochs)
    seconds = (time.perf_counter() - begun) / (epochs * len(images[360:]))
    spiked, one_hot = counts(images[360:], *learned), nn.functional.one_hot(labels[360:]).float()
    classes = (spiked.T @ one_hot / one_hot.sum(0)).argmax(1)  # of each neuron
    members = nn.functional.one_hot(classes, 10).float()
    votes = counts(images[:360], *learned) @ members / members.sum(0).clamp(min=1)
    return (votes.argmax(1) == labels[:360]).float().mean().item(), seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--neurons", type=int, default=100)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--seed", type=int, nargs="+", default=[0])
    asked = options.parse_args()
    for seed in asked.seed:
        right, seconds = run(asked.neurons, asked.epochs, seed)
        print(f"seed {seed}: {right:.1%} (chance 10%), {1e3 * seconds:.2f} ms an image", flush=True)


if __name__ == "__main__":
    main()
