"""Folding of batch normalization: the same outputs in evaluation mode, and the same structure of modules."""

import pytest
import torch
from torch import nn

import hibana as hb


def _with_statistics(net, x):
    net.train()
    for _ in range(3):
        net(x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    return net.eval()


class Reordered(nn.Module):
    """Calls its layers in another order than it defines them."""

    def __init__(self):
        super().__init__()
        self.norm = hb.EachStep(nn.BatchNorm2d(4))
        self.neurons = hb.LIF()
        self.conv = hb.EachStep(hb.Conv2d(2, 4, 3, bias=False))

    def forward(self, x):
        return self.neurons(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(hb.EachStep(nn.Sequential(hb.Conv2d(2, 4, 3), nn.BatchNorm2d(4))), hb.LI()),
        lambda: nn.Sequential(hb.EachStep(nn.Conv2d(2, 4, 3)), hb.EachStep(nn.BatchNorm2d(4)), hb.LI()),
        lambda: nn.Sequential(
            nn.Flatten(2), hb.EachStep(nn.Sequential(hb.Linear(72, 4), nn.BatchNorm1d(4))), hb.LI()
        ),
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(72, 4), hb.EachStep(nn.BatchNorm1d(4)), hb.LI()),
        lambda: nn.Sequential(hb.EachStep(nn.BatchNorm2d(2)), hb.LI()),
    ],
)
def test_outputs_stay_the_same(make):
    x = torch.rand(5, 3, 2, 6, 6)
    net = _with_statistics(make(), x)
    folded = hb.fold_batchnorm(net)
    assert type(folded) is nn.Sequential
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules())


def test_a_user_defined_module():
    x = torch.rand(5, 3, 2, 6, 6)
    net = _with_statistics(Reordered(), x)
    folded = hb.fold_batchnorm(net)
    assert isinstance(folded, Reordered)
    assert isinstance(folded.norm.module, nn.Identity)
    assert isinstance(folded.conv.module, hb.Conv2d)
    torch.testing.assert_close(folded(x).mean(), net(x).mean(), rtol=0.02, atol=0.0)  # ties may turn over


def test_normalization_outside_of_each_step_is_not_folded_into_a_layer_inside():
    net = nn.Sequential(hb.EachStep(nn.Linear(4, 3)), nn.BatchNorm1d(3), hb.LI())
    net(torch.rand(5, 3, 4))  # the samples of a step are as many as features
    with pytest.raises(ValueError, match=r"layer 1: .*outside of EachStep it takes samples for channels"):
        hb.fold_batchnorm(net)


def test_an_optimized_network_is_folded():
    x = torch.rand(5, 3, 2, 6, 6)
    net = hb.optimize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), hb.LI()), verbose=False)
    _with_statistics(net, x)
    folded = hb.fold_batchnorm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)


def test_layers_that_cannot_be_folded_are_named():
    with pytest.raises(ValueError, match="layer 1: no linear layer or convolution before it"):
        hb.fold_batchnorm(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="layer 1: batch normalization without running statistics"):
        hb.fold_batchnorm(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)))

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branching\.forward cannot be traced"):
        hb.fold_batchnorm(Branching())


class Twice(nn.Module):
    """Calls one normalization after two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two = hb.EachStep(nn.Conv2d(2, 4, 3)), hb.EachStep(nn.Conv2d(4, 4, 3))
        self.norm = hb.EachStep(nn.BatchNorm2d(4))

    def forward(self, x):
        return self.norm(self.two(self.norm(self.one(x))))


class Aliased(nn.Module):
    """Calls a convolution by the second of its names."""

    def __init__(self):
        super().__init__()
        self.conv = self.same = hb.EachStep(nn.Conv2d(2, 4, 3))
        self.norm = hb.EachStep(nn.BatchNorm2d(4))

    def forward(self, x):
        return self.norm(self.same(x))


class Between(Twice):
    """Calls the normalization once after a convolution, and once after a ReLU."""

    def forward(self, x):
        return self.norm(torch.relu(self.norm(self.one(x))))


def spectral():
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))
    return hb.EachStep(nn.Sequential(layer, nn.BatchNorm2d(4)))


@pytest.mark.parametrize("make", [Twice, Aliased, Between, spectral])
def test_every_call_is_folded(make):
    x = torch.rand(5, 3, 2, 6, 6)
    net = _with_statistics(make(), x)
    folded = hb.fold_batchnorm(net)
    assert type(folded) is type(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)


def test_an_optimized_network_that_joins_time_and_batch_is_refused():
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.neurons, self.out = nn.Conv2d(1, 2, 3), hb.IF(), nn.Linear(32, 3)

        def forward(self, x):
            return self.out(torch.flatten(self.neurons(self.conv(x)), 1))

    net, x = Images(), torch.rand(4, 2, 1, 6, 6)
    hb.optimize(net, x, verbose=False)
    with pytest.raises(ValueError, match="Images is called with time and batch joined since"):
        hb.fold_batchnorm(net)
