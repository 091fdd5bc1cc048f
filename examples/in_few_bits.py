"""Compares low-bit versions of a trained network: rounded after training, and trained in integers.

    hibana train --epochs 25 --out digits
    python examples/in_few_bits.py digits --bits 2,3,4

The third version is trained further in floats, and then rounded. ``--tau`` replaces the neurons by leaky
neurons; the network is then first trained further in floats. All further trainings use Adam with a learning
rate that decays to zero over ``--epochs``, and the same batches. All accuracies of low-bit versions are those
of the integer network on the test set.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import hibana as hb
from hibana.train import load

BATCH = 64


def tensors(split: object) -> tuple[Tensor, Tensor]:
    """Returns inputs and labels of a split as two tensors."""
    inputs, labels = zip(*(split[i] for i in range(len(split))), strict=True)
    return torch.stack(inputs), torch.tensor([int(label) for label in labels])


def train(net: nn.Module, model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float) -> None:
    """Trains `net` on `data` after the encoding of `model`."""
    inputs, labels = data
    batches = -(-len(inputs) // BATCH) * epochs
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad()
            scores = model.objective.scores(net(model.encode(inputs[indices])))
            nn.functional.cross_entropy(scores, labels[indices]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def accuracy(net: nn.Module, model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Returns the fraction of `data` that is classified correctly."""
    inputs, labels = data
    with torch.no_grad():
        classes = torch.cat(
            [model.objective.scores(net(model.encode(x))).argmax(1) for x in inputs.split(500)]
        )
    return float((classes == labels).double().mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--bits", default="2,3,4")
    options.add_argument("--tau", type=float)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--rate", type=float, default=1e-3)
    args = options.parse_args()
    torch.set_num_threads(1)

    model = load(args.checkpoint)
    samples = model.settings.samples(model.description)
    samples.prepare_data()
    samples.setup()
    training, test = tensors(samples.training), tensors(samples.test)
    shown = model.encode(training[0][:256])
    net = copy.deepcopy(model.net)
    if args.tau is not None:
        for layer in net.modules():
            if isinstance(layer, hb.OverTime) and isinstance(layer.cell, hb.IFCell):
                layer.cell = hb.LIFCell(args.tau, layer.cell.threshold, layer.cell.surrogate)
    floats = copy.deepcopy(net)
    train(floats, model, training, args.epochs, args.rate)
    print(f"floats: {accuracy(net, model, test):.2%}, trained further {accuracy(floats, model, test):.2%}")
    print("bits  rounded  trained in floats, rounded  trained in integers")
    for bits in map(int, args.bits.split(",")):
        start = floats if args.tau is not None else net
        aware = hb.convert.quantization_aware(start, shown, bits)
        train(aware, model, training, args.epochs, args.rate)
        accuracies = [accuracy(hb.quantize(n, shown, bits)[0], model, test) for n in (start, floats, aware)]
        assert accuracies[-1] == accuracy(aware, model, test)
        print("{:4}  {:7.2%}  {:26.2%}  {:19.2%}".format(bits, *accuracies), flush=True)


if __name__ == "__main__":
    main()
