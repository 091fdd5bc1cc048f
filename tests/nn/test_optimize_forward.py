"""``hb.optimize`` of networks with a user-defined ``forward``, for sequences and for images."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn.optimize import table
from nn.test_optimize import X, results, same


def conv(inputs=8, outputs=8, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)


class Chain(nn.Module):
    """Convolution, normalization and neurons, twice; both calls of the neurons use one module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(8)
        self.neurons, self.readout = hb.LIF(), nn.Linear(8, 3)

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.bn2(self.conv2(x)))
        return self.readout(x.mean((-1, -2))).mean(0)


class Image(Chain):
    """A ``forward`` written for images: axis 1 holds the channels."""

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.bn2(self.conv2(x)))
        return self.readout(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Wrapped(Chain):
    """The network with its image layers in EachStep."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = hb.EachStep(self.conv1), hb.EachStep(self.bn1)
        self.conv2 = hb.EachStep(nn.Sequential(self.conv2, self.bn2))
        self.bn2 = nn.Identity()

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.conv2(x))
        return self.readout(x.mean((-1, -2))).mean(0)


class JoinedSteps(nn.Module):
    """Neurons that are called with steps and batch joined."""

    def __init__(self, neurons, steps):
        super().__init__()
        self.module, self.steps = neurons, steps

    def forward(self, x):
        return self.module(x.unflatten(0, (self.steps, -1))).flatten(0, 1)


class Flattened(nn.Module):
    """Calls a network of images with time and batch joined, and separates them for its neurons."""

    def __init__(self, net, steps):
        super().__init__()
        self.net = copy.deepcopy(net)
        for name, module in list(self.net.named_modules()):
            if isinstance(module, hb.OverTime):
                self.net.set_submodule(name, JoinedSteps(module, steps))

    def forward(self, x):
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def by_hand(net):
    """A copy of `net` with its image layers in EachStep."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            net.set_submodule(name, hb.EachStep(module))
    return net


def check_alike(net, reference, x=X, **factors):
    """Checks outputs, gradients and statistics of two passes, in training and in evaluation."""
    for training in (True, False):
        net.train(training)
        reference.train(training)
        for _ in range(2):
            results_, expected = results(net, x, **factors), results(reference, x, **factors)
            expected = {name.removeprefix("net."): value for name, value in expected.items()}
            same(results_, expected)


def row(net, name):
    return next(line for line in table(net).splitlines() if line.split()[0] == name)


def test_results_are_those_of_each_step():
    net = Chain()
    reference, names = by_hand(net), [*net.state_dict()]
    tensors = [id(t) for t in (*net.parameters(), *net.buffers())]
    hb.optimize(net, X, verbose=False)
    assert row(net, "bn1").endswith("over time")
    check_alike(net, reference)
    assert [*net.state_dict()] == names
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == tensors


def test_each_step_in_a_users_forward():
    net = Wrapped()
    reference = copy.deepcopy(net)
    before = pickle.dumps(net)
    hb.optimize(net, X, verbose=False)
    assert "per spike" in row(net, "conv2.module.0")
    hb.optimize(net, undo=True, verbose=False)
    assert pickle.dumps(net) == before
    hb.optimize(net, X, verbose=False)
    check_alike(net, reference)


def test_hooks_receive_the_same_values():
    net = Chain()
    reference = by_hand(net)
    hb.optimize(net, X, verbose=False)
    means = []
    for each in (net, reference):
        each.neurons.register_forward_hook(lambda _, args, out: means.append((args[0].mean(), out.mean())))
        each(X)
    assert len(means) == 4
    torch.testing.assert_close(means[:2], means[2:], rtol=1e-4, atol=1e-5)
    for each in (net, reference):
        each.neurons.register_full_backward_hook(lambda *_: None)
    check_alike(net, reference)


def test_other_dtypes_and_transforms_agree_with_the_plain_network():
    net = Chain().eval()
    reference = by_hand(net)
    hb.optimize(net, X, verbose=False)
    with torch.inference_mode():
        torch.testing.assert_close(net(X), reference(X), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net.double()(X.double()), reference.double()(X.double()))
    net, reference = net.float(), reference.float()
    torch.testing.assert_close(hb.run(net, X)[0], reference(X), rtol=1e-3, atol=1e-4)
    parameters = dict(net.named_parameters())
    outputs = torch.func.functional_call(net, parameters, (X,))
    torch.testing.assert_close(outputs, reference(X), rtol=1e-3, atol=1e-4)


def test_it_is_copied_and_pickled():
    for kind in (Chain, Image):
        net = kind().eval()
        hb.optimize(net, X, verbose=False)
        expected = net(X)
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert isinstance(copied, kind)
            torch.testing.assert_close(copied(X), expected)
            hb.optimize(copied, undo=True, verbose=False)
            assert type(copied) is kind


def test_a_network_of_images_is_called_with_steps_joined():
    net = Image()
    reference, names = Flattened(net, len(X)), [*net.state_dict()]
    hb.optimize(net, X, verbose=False)
    assert row(net, "-").split(maxsplit=2)[1:] == ["Image", "called with time and batch joined"]
    assert isinstance(net, Image)
    check_alike(net, reference)
    assert [*net.state_dict()] == names
    assert "joined" in table(hb.optimize(Image(), X[:, :1], verbose=False))
    with pytest.raises(ValueError, match=r"must be \[T, batch, \.\.\.\] of 5 dimensions"):
        net(X[0])
    full, _ = hb.run(net.eval(), X)
    first, state = hb.run(net, X[:2])
    rest, _ = hb.run(net, X[2:], state)
    torch.testing.assert_close(torch.cat([first, rest]), full)


TORCHVISION = {
    "resnet18": lambda models: models.resnet18(num_classes=10),
    "mobilenet_v2": lambda models: models.mobilenet_v2(num_classes=10, dropout=0.0),
    "densenet121": lambda models: models.densenet121(num_classes=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_are_equal_in_float64(name, training):
    net = TORCHVISION[name](pytest.importorskip("torchvision.models")).double()
    for place, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU | nn.ReLU6):
            net.set_submodule(place, hb.IF())
    check_optimized(net, torch.rand(3, 2, 3, 32, 32, dtype=torch.float64), training)


@pytest.mark.parametrize("training", [True, False])
def test_a_small_resnet_of_torchvision(training):
    models = pytest.importorskip("torchvision.models")
    net = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU):
            net.set_submodule(name, hb.IF())
    check_optimized(net, torch.rand(3, 2, 3, 32, 32), training)


def check_optimized(net, x, training):
    """Checks outputs, gradients and statistics of `net` against the network with its steps joined by hand."""
    reference, names = Flattened(net, len(x)), [*net.state_dict()]
    before = pickle.dumps(net)
    hb.optimize(net, x, verbose=False)
    assert row(net, "-").endswith("called with time and batch joined")
    assert [*net.state_dict()] == names
    hb.optimize(net, undo=True)
    assert pickle.dumps(net) == before
    hb.optimize(net, x, verbose=False)
    net.train(training)
    reference.train(training)
    result, expected = results(net, x), results(reference, x)
    share = 1e-9 if x.dtype == torch.float64 else 2e-4
    same(result, {name.removeprefix("net."): value for name, value in expected.items()}, share)


def test_an_ambiguous_forward_is_refused():
    class Two(Image):
        def forward(self, x):
            x = self.neurons(self.bn1(self.conv1(x)))
            return x - x.mean(0, keepdim=True)

    net = Two()
    with pytest.raises(RuntimeError, match=r"can't tell which is meant.*hibana\.EachStep"):
        hb.optimize(net, X, verbose=False)
    assert type(net.conv1) is nn.Conv2d
    assert type(net) is Two
