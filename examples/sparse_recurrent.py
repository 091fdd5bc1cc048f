"""Trains a large network with sparse recurrent synapses by backpropagation through time.

    python examples/sparse_recurrent.py --neurons 20000 --connectivity 0.01

Delayed match to sample: a cue is shown for ten steps, one of four random patterns of input spikes; after a
delay a second cue follows; the network decides whether both were the same. The neurons have adaptive
thresholds, and 1% of all pairs of neurons are connected. Time and memory are proportional to these synapses.
"""

import argparse
import resource
import time

import torch
from torch import nn

import hibana as hb

CUES, INPUTS, SHOWN = 4, 64, 10


def batch(size: int, delay: int, patterns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input spikes ``[2 SHOWN + delay, size, INPUTS]``, and labels: 1 if both cues are equal."""
    first, labels = torch.randint(CUES, (size,)), torch.randint(2, (size,))
    second = (first + (1 - labels) * torch.randint(1, CUES, (size,))) % CUES
    rates = torch.zeros(2 * SHOWN + delay, size, INPUTS)
    rates[:SHOWN], rates[-SHOWN:] = patterns[first], patterns[second]
    return torch.bernoulli(rates), labels


def network(neurons: int, connectivity: float) -> nn.Module:
    """Sparse input synapses, recurrent adaptive neurons, and the firing rate of the second cue as readout."""
    cell = hb.ALIFCell(tau=10.0, tau_adaptation=60.0, strength=1.0, surrogate="Box", detach_reset=True)
    return nn.Sequential(
        hb.SparseLinear(INPUTS, neurons, connectivity=0.1),
        hb.Recurrent(cell, neurons, hb.SparseLinear(neurons, neurons, connectivity, bias=False)),
        hb.Linear(neurons, 2),
    )


def main() -> None:
    """Prints the loss, the accuracy, the firing rate and the time of each epoch, then the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--neurons", type=int, default=20_000)
    parser.add_argument("--connectivity", type=float, default=0.01)
    parser.add_argument("--delay", type=int, default=20, help="steps between the cues")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=15, help="batches per epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    patterns = (torch.rand(CUES, INPUTS) < 0.25) * 0.5
    net = network(options.neurons, options.connectivity)
    print(f"{options.neurons:,} neurons, {net[1].recurrent.weight.numel():,} recurrent synapses")
    optimizer = torch.optim.Adam(net.parameters(), options.lr)
    for epoch in range(options.epochs):
        start, losses, correct, rates = time.perf_counter(), [], 0, []
        for _ in range(options.batches):
            x, labels = batch(options.batch_size, options.delay, patterns)
            spikes = net[:2](x)
            logits = net[2](spikes)[-SHOWN:].mean(0)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(spikes.detach().mean().item())
            correct += int((logits.argmax(1) == labels).sum())
        seen = options.batches * options.batch_size
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, accuracy {correct / seen:.1%}, "
            f"firing {sum(rates) / len(rates):.1%}, {time.perf_counter() - start:.1f} s",
            flush=True,
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
