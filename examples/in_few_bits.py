"""A checkpoint in weights of few bits: rounded after its training, and trained on in whole numbers.

    hibana train --epochs 25 --out digits
    python examples/in_few_bits.py digits --bits 2,3,4

Beside them the same network trained on in floats, and rounded then. `--tau` puts a leak in its neurons, with
which it is trained on in floats first. Each is trained on by the same recipe (Adam, its learning rate going
to zero over `--epochs`), with the same batches; what is rounded is tested as whole numbers, on the test set.
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
    """Inputs and labels of a split."""
    inputs, labels = zip(*(split[i] for i in range(len(split))), strict=True)
    return torch.stack(inputs), torch.tensor([int(label) for label in labels])


def trained_on(
    net: nn.Module, model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float
) -> None:
    """Trains `net`, which takes what `model` encodes."""
    inputs, labels = data
    batches = -(-len(inputs) // BATCH) * epochs
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    drawn = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(inputs), generator=drawn).split(BATCH):
            optimizer.zero_grad()
            scores = model.objective.scores(net(model.encode(inputs[at])))
            nn.functional.cross_entropy(scores, labels[at]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def right(net: nn.Module, model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The part of `data` that is named rightly."""
    inputs, labels = data
    with torch.no_grad():
        found = torch.cat([model.objective.scores(net(model.encode(x))).argmax(1) for x in inputs.split(500)])
    return float((found == labels).double().mean())


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
    trained_on(floats, model, training, args.epochs, args.rate)
    print(f"floats: {right(net, model, test):.2%}, trained on {right(floats, model, test):.2%}")
    print("bits  rounded  floats trained on, rounded  trained on in whole numbers")
    for bits in map(int, args.bits.split(",")):
        start = floats if args.tau is not None else net
        aware = hb.convert.quantization_aware(start, shown, bits)
        trained_on(aware, model, training, args.epochs, args.rate)
        found = [right(hb.quantize(n, shown, bits)[0], model, test) for n in (start, floats, aware)]
        assert found[-1] == right(aware, model, test)
        print("{:4}  {:7.2%}  {:26.2%}  {:27.2%}".format(bits, *found), flush=True)


if __name__ == "__main__":
    main()
