"""Learns through a wiring diagram: which group of sensory neurons of a fly larva is stimulated?

    python examples/connectome_learning.py EDGES.csv NEURONS.csv [--seeds 0 1 2] [--steps 200]

The network has the neurons of Shiu et al. (2024) in steps of 1 ms. The larva's table has no signs, so each
neuron gets one, drawn once from ``--sign-seed``: 30% inhibit. In each sample, half of the neurons of one
group of sensory neurons (olfactory, AN, MN, Rh) spike at 150 Hz for 60 ms. The descending neurons, whose kind
begins with ``DN``, are divided into four teams; the team with most spikes is the answer. No readout learns:
only the synapses of the diagram do, by backpropagation through time. After each step of the optimizer,
synapses whose sign has changed are set to 0.
"""

import argparse
import resource
import time

import numpy as np
import torch

import hibana as hb
from hibana.data.connectome import read_connectome_table

GROUPS = {"olfactory": "* ORN *", "AN": "AN*", "MN": "MN*", "Rh": "Rh*"}
"""Names of sensory neurons, in the column `name`."""
READ = "DN*"
"""Kinds of the neurons that are read, in the column `kind`."""
STEPS, BATCH = 60, 16
RATE = 0.15
"""Probability of a spike of a stimulated neuron in a step of 1 ms."""
SHARE = 0.5
"""Share of a group's neurons that are stimulated in a sample."""
SHARPNESS = 20.0
"""Factor of the mean numbers of spikes in the loss."""
CURRENT = 200.0
"""What a spike of the stimulus adds to a neuron's current in mV, so that the neuron spikes."""


class Task:
    """Samples, and the answer of the network.

    Args:
        neurons: the neurons of the network.
        seed: seed of the teams and of the samples.
    """

    def __init__(self, neurons: hb.connect.Neurons, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.size = len(neurons)
        self.groups = [neurons.select(kind="Sensory", name=name) for name in GROUPS.values()]
        read = neurons.select(kind=READ)
        self.read = read[torch.randperm(len(read), generator=self.random)]

    def samples(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The input currents ``[STEPS, count, neurons]``, and the group of each sample."""
        labels = torch.randint(len(self.groups), (count,), generator=self.random)
        inputs = torch.zeros(STEPS, count, self.size)
        for sample, label in enumerate(labels.tolist()):
            group = self.groups[label]
            chosen = group[torch.randperm(len(group), generator=self.random)[: round(SHARE * len(group))]]
            spikes = torch.rand(STEPS, len(chosen), generator=self.random) < RATE
            inputs[:, sample, chosen] = CURRENT * spikes
        return inputs, labels

    def scores(self, spikes: torch.Tensor) -> torch.Tensor:
        """The mean number of spikes of a neuron of each team, ``[count, groups]``."""
        counts = spikes[:, :, self.read].sum(0)
        return torch.stack([team.mean(1) for team in counts.tensor_split(len(self.groups), 1)], 1)


def accuracy(net: torch.nn.Module, task: Task, batches: int = 10) -> float:
    """The share of correct answers."""
    with torch.no_grad():
        results = [
            (task.scores(net(x)).argmax(1) == labels)
            for x, labels in (task.samples(BATCH) for _ in range(batches))
        ]
    return torch.cat(results).float().mean().item()


def learn(edges: str, neurons: str, seed: int, steps: int, rate: float, sign_seed: int) -> float:
    """Trains one network, and returns its accuracy on new samples."""
    table = read_connectome_table(neurons)
    table["sign"] = np.where(np.random.default_rng(sign_seed).random(len(table)) < 0.3, -1, 1)
    torch.manual_seed(seed)
    net, order = hb.models.connectome(edges, table, dt=1.0)
    net.cell.surrogate = hb.surrogate.ATan(0.3)
    task = Task(order, seed)
    weight = net.recurrent.weight
    signs = weight.detach().sign()
    optimizer = torch.optim.Adam(net.parameters(), rate)
    print(
        f"seed {seed}: {len(order):,} neurons, {len(weight):,} connections, before {accuracy(net, task):.0%}"
    )
    start = time.perf_counter()
    for step in range(steps):
        inputs, labels = task.samples(BATCH)
        spikes = net(inputs)
        loss = torch.nn.functional.cross_entropy(SHARPNESS * task.scores(spikes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            weight.copy_(signs * (signs * weight).clamp(min=0))
        if step % 25 == 24:
            print(
                f"  step {step + 1}: loss {loss.item():.2f}, {1000 * spikes.mean().item():.1f} Hz", flush=True
            )
    seconds = (time.perf_counter() - start) / steps
    result = accuracy(net, task, batches=20)
    assert not bool((weight.sign() == -signs).any())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  after: {result:.1%}, all signs kept; {seconds:.2f} s per step, {memory:.1f} GiB", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("edges")
    parser.add_argument("neurons")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--sign-seed", type=int, default=0)
    options = parser.parse_args()
    arguments = options.steps, options.lr, options.sign_seed
    results = [learn(options.edges, options.neurons, seed, *arguments) for seed in options.seeds]
    print(f"accuracy {', '.join(f'{result:.1%}' for result in results)} (chance 25%)")


if __name__ == "__main__":
    main()
