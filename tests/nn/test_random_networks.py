"""Random networks of torch's and hibana's layers: optimized they compute the same, and undo restores them."""

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
    """A copy of `net` with its image layers wrapped in EachStep."""
    net = copy.deepcopy(net)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
    for name, module in list(net.named_modules()):
        if isinstance(module, kinds):
            net.set_submodule(name, hb.EachStep(module))
    return net


SUM_ERROR = torch.finfo(torch.float32).eps / 2 * STEPS * BATCH * SIDE * SIDE
"""Bound of the relative error of a sequential float32 sum over all steps and pixels.

Source: Higham (2002), *Accuracy and stability of numerical algorithms*, section 4.2.
"""
ERROR_FACTOR = 4
"""Allowed error, relative to the error of a network perturbed by :data:`SUM_ERROR`."""
NO_FLIP = 1e-3
"""Output error, relative to the largest output, up to which no layer gained or lost a spike."""


PERTURBATIONS = 4
"""Number of networks perturbed by :data:`SUM_ERROR` to detect potentials this near to their threshold: each
moves such a potential across the threshold with probability 1/2."""


def exact(net):
    """A copy of `net` in float64 whose neurons use the reference loop."""
    net = copy.deepcopy(net).double()
    for module in net.modules():
        if isinstance(module, hb.OverTime):
            module.backend = "reference"
    return net


def rounded(net, x, generator):
    """`net` and `x` with relative errors of up to :data:`SUM_ERROR`, and channels last in memory.

    In this layout PyTorch sums a normalization's values in float32, as hibana does; otherwise in float64.
    """

    def perturbed(values):
        return values * (1 + SUM_ERROR * (2 * torch.rand(values.shape, generator=generator) - 1))

    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(perturbed(parameter))
    return net.to(memory_format=torch.channels_last), perturbed(x).movedim(2, -1).contiguous().movedim(-1, 2)


def largest(values):
    return values.abs().max().item() if values.numel() else 0.0


def compare(optimized, plain, perturbed, exact_results):
    """Checks that the results `optimized` equal `exact_results` up to rounding.

    Two plain networks measure how rounding errors of sums grow, above all in a normalization of few
    numbers: `plain`, and one whose parameters and inputs are `perturbed` by such an error.
    """
    assert optimized.keys() == exact_results.keys()
    gradients = max(largest(exact_results[name]) for name in optimized if name != "outputs")
    for name, value in optimized.items():
        error = max(largest(each[name].double() - exact_results[name]) for each in (plain, perturbed))
        # before a normalization, the gradient of a bias is the rounding error of larger gradients
        scale = gradients if name.endswith(".bias") else largest(exact_results[name])
        allowed = ERROR_FACTOR * (error + SUM_ERROR * scale)
        difference = largest(value.double() - exact_results[name])
        assert difference <= allowed, (
            f"{name} is off by {difference}, {difference / allowed:.1f} times what rounding explains"
        )


def draw_stable_inputs(draw, references, seed):
    """Draws inputs for which rounding changes no spike; returns them with the results of the references.

    Fails after 20 draws, for example if a potential stays at its threshold for all inputs.
    """
    for _ in range(20):
        x = torch.rand(STEPS, BATCH, 2, SIDE, SIDE, generator=draw) * 2
        copies = [copy.deepcopy(net) for net in references]
        plain, double = copies
        nets = [rounded(plain, x, draw) for _ in range(PERTURBATIONS)]  # before calls change their statistics
        with torch.no_grad():
            outputs = [net(noisy_x) for net, noisy_x in nets[1:]]
        (noisy_net, noisy_x), *_ = nets
        references_ = results(plain, x), results(noisy_net, noisy_x), results(double, x.double())
        *rough, exact = [each["outputs"] for each in references_]
        if all(largest(each.double() - exact) <= NO_FLIP * largest(exact) for each in (*rough, *outputs)):
            return x, references_, copies
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
        x, triple, references = draw_stable_inputs(draw, references, seed)
        result = results(net, x)
        absent = [name for name, value in result.items() if value is None]
        assert absent == [name for name, value in triple[0].items() if value is None]
        compare(*({name: each[name] for name in each if name not in absent} for each in (result, *triple)))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.exhaustive if seed >= 10 else ()) for seed in range(30)]
)
def test_optimize_changes_no_result_and_can_be_undone(seed):
    check(seed)
