"""Random networks of torch's and hibana's layers: optimised and not, they are the same; and undone again."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn import normalized
from nn.test_optimize import results

STEPS, BATCH, SIDE = 4, 2, 8
NEURONS = (
    lambda: hb.IF(threshold=0.3),
    lambda: hb.LIF(threshold=0.3),
    lambda: hb.PLIF(threshold=0.3),
    lambda: hb.CubaLIF(threshold=0.3),
    lambda: hb.ALIF(threshold=0.3),
    lambda: hb.IF(threshold=0.3, surrogate=hb.surrogate.ATan()),
)
"""Thresholds are low, so that most layers of few steps spike."""


class Block(nn.Module):
    """A convolution, a normalisation and neurons, joined in one of several ways."""

    def __init__(self, draw, inputs, outputs):
        super().__init__()
        kernel = draw.choice([1, 3])
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2, bias=draw.random() < 0.3,
            groups=draw.choice([1, 1, 2]) if kernel == 3 else 1,
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(
            outputs, affine=draw.random() < 0.8, momentum=draw.choice([0.1, None]),
            track_running_stats=draw.random() < 0.9,
        )  # fmt: skip
        self.neurons = draw.choice(NEURONS)()
        ways = ["plain", "read", "two", "no norm", "norm first", "dropout"]
        self.way = draw.choice(ways + ["residual", "sum first", "again"] * (inputs == outputs))

    def forward(self, x):
        match self.way:
            case "plain":
                return self.neurons(self.norm(self.conv(x)))
            case "read":
                h = self.norm(self.conv(x))
                return self.neurons(h) + 0.1 * h
            case "two":
                h = self.norm(self.conv(x))
                return self.neurons(h) + self.neurons(-h)
            case "no norm":
                return self.neurons(self.conv(x))
            case "norm first":
                return self.neurons(self.norm(self.neurons(self.conv(x))))
            case "dropout":
                return self.neurons(nn.functional.dropout(self.norm(self.conv(x)), 0.5, training=False))
            case "residual":
                return x + self.neurons(self.norm(self.conv(x)))
            case "sum first":
                h = self.norm(self.conv(x))
                h += x
                return self.neurons(h)
            case "again":
                return self.neurons(self.conv(self.neurons(self.norm(self.conv(x)))))


def network(seed):
    """A random network ``[T, batch, 2, 8, 8] -> [T, batch, 3]``."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers, channels, side = [], 2, SIDE
    for _ in range(draw.randint(1, 3)):
        outputs = draw.choice([channels, 4, 8])
        if draw.random() < 0.5:
            layers.append(Block(draw, channels, outputs))
        else:
            parts = [
                nn.Conv2d(channels, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                draw.choice(NEURONS)(),
            ]
            parts = parts if draw.random() < 0.7 else [parts[0], parts[2]]
            layers += parts if draw.random() < 0.5 else [nn.Sequential(*parts)]
        channels = outputs
        if side > 2 and draw.random() < 0.5:
            layers.append(draw.choice([nn.MaxPool2d, nn.AvgPool2d])(2))
            side //= 2
    if draw.random() < 0.3:
        layers.append(nn.AdaptiveAvgPool2d(1))
        side = 1
    layers += [nn.Flatten(), nn.Linear(channels * side * side, 3)]
    if draw.random() < 0.5:
        layers.append(hb.LI())
    return nn.Sequential(*layers)


def by_hand(net):
    """The same network, its layers of images in EachStep."""
    net = copy.deepcopy(net)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
    for name, module in list(net.named_modules()):
        if isinstance(module, kinds):
            net.set_submodule(name, hb.EachStep(module))
    return net


def agree(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        scale = wanted[name].abs().max().item()
        if name.endswith(".bias"):  # before a normalisation its gradient is what was rounded of larger ones
            scale = max(gradient.abs().max().item() for gradient in wanted.values())
        off = (value - wanted[name]).abs().max().item()
        assert off <= 1e-3 * scale + 1e-6, f"{name} is off by {off}, its largest is {scale}"


def check(seed):
    net = network(seed)
    x = torch.rand(STEPS, BATCH, 2, SIDE, SIDE) * 2
    reference, names, before = by_hand(net), [*net.state_dict()], pickle.dumps(net)
    example = x if seed % 2 else None
    hb.optimize(net, example, verbose=False)
    assert [*net.state_dict()] == names
    hb.optimize(net, undo=True, verbose=False)
    assert pickle.dumps(net) == before
    hb.optimize(net, example, verbose=False)
    for training in (True, True, False):
        net.train(training)
        reference.train(training)
        found, wanted = results(net, x), results(reference, x)
        gone = [name for name, value in found.items() if value is None]
        assert gone == [name for name, value in wanted.items() if value is None]
        for name in gone:
            del found[name], wanted[name]
        agree(found, wanted)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.exhaustive if seed >= 10 else ()) for seed in range(30)]
)
def test_optimised_and_undone(seed, monkeypatch):
    monkeypatch.setattr(normalized.layer, "FUSED_FROM", 0)
    check(seed)
