"""Random networks of torch's and hibana's layers: optimised and not, they are the same; and undone again."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

import hibana as hb
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
    """A convolution, a normalization and neurons, joined in one of several ways."""

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


SUMMED = torch.finfo(torch.float32).eps / 2 * STEPS * BATCH * SIDE * SIDE
"""Relative error that a sum over all steps and pixels may have in float32, one number after the other.

Source: Higham (2002), *Accuracy and stability of numerical algorithms*, section 4.2.
"""
TIMES = 4
"""How many times as far from the exact result as a network that is off by :data:`SUMMED` another may be."""
FLIPPED = 1e-3
"""Error of outputs, as a share of the largest, up to which no layer has a spike more or less."""


MARGIN = 4
"""Networks off by :data:`SUMMED` that show whether a potential is as near to its threshold: each has an even
chance to come to lie on the other side."""


def exact(net):
    """`net` in float64, its neurons by the reference loop."""
    net = copy.deepcopy(net).double()
    for module in net.modules():
        if isinstance(module, hb.OverTime):
            module.backend = "reference"
    return net


def rounded(net, x, generator):
    """`net` and `x`, each number off by up to :data:`SUMMED`, and channels last in memory.

    PyTorch then adds up a normalization's numbers in float32, as hibana does, and else in float64.
    """

    def off(values):
        return values * (1 + SUMMED * (2 * torch.rand(values.shape, generator=generator) - 1))

    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(off(parameter))
    return net.to(memory_format=torch.channels_last), off(x).movedim(2, -1).contiguous().movedim(-1, 2)


def largest(values):
    return values.abs().max().item() if values.numel() else 0.0


def agree(found, plain, off, wanted):
    """Checks that `found` are the `wanted` exact results but for rounding.

    What errors of sums become on their way, through a normalization of few numbers above all, two plain
    networks say: `plain`, and one whose parameters and inputs are `off` by such an error.
    """
    assert found.keys() == wanted.keys()
    gradients = max(largest(wanted[name]) for name in found if name != "outputs")
    for name, value in found.items():
        error = max(largest(each[name].double() - wanted[name]) for each in (plain, off))
        # before a normalization, the gradient of a bias is what was rounded of larger ones
        scale = gradients if name.endswith(".bias") else largest(wanted[name])
        allowed = TIMES * (error + SUMMED * scale)
        apart = largest(value.double() - wanted[name])
        assert apart <= allowed, (
            f"{name} is off by {apart}, {apart / allowed:.1f} times what rounding explains"
        )


def taken(draw, references, seed):
    """Inputs at which no rounding makes a spike more or less, and what the references make of them.

    There are none where a potential stays at a threshold, whatever the inputs.
    """
    for _ in range(20):
        x = torch.rand(STEPS, BATCH, 2, SIDE, SIDE, generator=draw) * 2
        copies = [copy.deepcopy(net) for net in references]
        plain, double = copies
        others = [rounded(plain, x, draw) for _ in range(MARGIN)]  # before a call changes running statistics
        with torch.no_grad():
            outputs = [net(near) for net, near in others[1:]]
        (other, near), *_ = others
        of = results(plain, x), results(other, near), results(double, x.double())
        *found, exact = [each["outputs"] for each in of]
        if all(largest(each.double() - exact) <= FLIPPED * largest(exact) for each in (*found, *outputs)):
            return x, of, copies
    raise AssertionError(f"network {seed}: rounding changes its spikes at each of 20 inputs")


def check(seed):
    net = network(seed)
    draw = torch.Generator().manual_seed(seed)
    reference, names, before = by_hand(net), [*net.state_dict()], pickle.dumps(net)
    example = torch.rand(STEPS, BATCH, 2, SIDE, SIDE, generator=draw) * 2 if seed % 2 else None
    hb.optimize(net, example, verbose=False)
    assert [*net.state_dict()] == names
    hb.optimize(net, undo=True, verbose=False)
    assert pickle.dumps(net) == before
    hb.optimize(net, example, verbose=False)
    references = [reference, exact(reference)]
    for training in (True, True, False):
        for each in (net, *references):
            each.train(training)
        x, wanted, references = taken(draw, references, seed)
        found = results(net, x)
        gone = [name for name, value in found.items() if value is None]
        assert gone == [name for name, value in wanted[0].items() if value is None]
        agree(*({name: each[name] for name in each if name not in gone} for each in (found, *wanted)))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.exhaustive if seed >= 10 else ()) for seed in range(30)]
)
def test_optimised_and_undone(seed):
    check(seed)
