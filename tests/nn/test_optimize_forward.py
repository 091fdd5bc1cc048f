"""``hb.optimize`` of networks with a ``forward`` of their own, for sequences and for images."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hibana as hb
from hibana.nn import normalized
from hibana.nn.deferred import Deferred
from nn.test_optimize import X, results, same


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    monkeypatch.setattr(normalized.layer, "FUSED_FROM", 0)


def conv(inputs=8, outputs=8, **named):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **named)


class Chain(nn.Module):
    """Convolution, normalisation, neurons, twice; the neurons are one module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(8)
        self.neurons, self.readout = hb.LIF(), nn.Linear(8, 3)

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.bn2(self.conv2(x)))
        return self.readout(x.mean((-1, -2))).mean(0)


class Post(Chain):
    """The second normalisation's output is added to before the neurons."""

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        return self.readout(self.neurons(out).mean((-1, -2))).mean(0)


class Image(Chain):
    """Written for images: axis 1 is channels."""

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.bn2(self.conv2(x)))
        return self.readout(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Wrapped(Chain):
    """Its layers of images in EachStep."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = hb.EachStep(self.conv1), hb.EachStep(self.bn1)
        self.conv2 = hb.EachStep(nn.Sequential(self.conv2, self.bn2))
        self.bn2 = nn.Identity()

    def forward(self, x):
        x = self.neurons(self.bn1(self.conv1(x)))
        x = self.neurons(self.conv2(x))
        return self.readout(x.mean((-1, -2))).mean(0)


class OfImages(nn.Module):
    """Neurons called with steps and batch joined."""

    def __init__(self, neurons, steps):
        super().__init__()
        self.module, self.steps = neurons, steps

    def forward(self, x):
        return self.module(x.unflatten(0, (self.steps, -1))).flatten(0, 1)


class Flattened(nn.Module):
    """A network of images by hand: time and batch joined around it, and taken apart for its neurons."""

    def __init__(self, net, steps):
        super().__init__()
        self.net = copy.deepcopy(net)
        for name, module in list(self.net.named_modules()):
            if isinstance(module, hb.OverTime):
                self.net.set_submodule(name, OfImages(module, steps))

    def forward(self, x):
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def by_hand(net):
    """The same network with its layers of images in EachStep."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            net.set_submodule(name, hb.EachStep(module))
    return net


def alike(net, reference, x=X, **named):
    """Outputs, gradients and statistics of two passes, in training and in evaluation."""
    for training in (True, False):
        net.train(training)
        reference.train(training)
        for _ in range(2):
            found, wanted = results(net, x, **named), results(reference, x, **named)
            wanted = {name.removeprefix("net."): value for name, value in wanted.items()}
            same(found, wanted)


def row(report, name):
    return next(line for line in str(report).splitlines() if line.split()[0] == name)


@pytest.mark.parametrize("kind", [Chain, Post])
def test_chains_are_found_by_running_the_example(kind):
    net = kind()
    reference, names = by_hand(net), [*net.state_dict()]
    tensors = [id(t) for t in (*net.parameters(), *net.buffers())]
    report = hb.optimize(net, X, verbose=False)
    assert "in the neurons' pass" in row(report, "bn1")
    assert "with the normalisation before it" in row(report, "neurons")
    alike(net, reference)
    assert net.bn1.__dict__["_fusing"]._made[2].explain() == "normalised in the neurons' own pass"
    assert [*net.state_dict()] == names
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == tensors


def test_what_something_else_reads_is_left_and_named():
    net = Post()
    report = hb.optimize(net, X, verbose=False)
    assert "in a pass of its own: " in row(report, "bn2")
    assert "add" in row(report, "bn2")
    assert type(net.bn2(torch.rand(4, 3, 8, 16, 16))) is torch.Tensor
    assert type(net.bn1(torch.rand(4, 3, 8, 16, 16))) is Deferred


def test_it_is_undone_byte_for_byte():
    for net in (Chain(), Post(), Image()):
        before = pickle.dumps(net)
        hb.optimize(net, X, verbose=False)
        assert type(net.conv1) is not nn.Conv2d
        hb.optimize(net, undo=True, verbose=False)
        assert pickle.dumps(net) == before


def test_other_control_flow_than_the_examples_gets_the_tensor():
    class Told(Chain):
        way = "neurons"

        def forward(self, x):
            h = self.bn1(self.conv1(x))
            match self.way:
                case "neurons":
                    out = self.neurons(h)
                case "sum first":
                    out = h * 0.1 + self.neurons(h)
                case "sum last":
                    out = self.neurons(h) + h * 0.1
                case "relu":
                    out = torch.relu(h)
            return self.readout(out.mean((-1, -2))).mean(0)

    net = Told()
    reference = by_hand(net)
    report = hb.optimize(net, X, verbose=False)
    assert "in the neurons' pass" in row(report, "bn1")
    for way in ("neurons", "sum first", "sum last", "relu"):
        net.way = reference.way = way
        for training in (True, False):
            net.train(training)
            reference.train(training)
            found, wanted = results(net, X), results(reference, X)
            used = [name for name, value in wanted.items() if value is not None]
            assert used == [name for name, value in found.items() if value is not None]
            # where the output is computed twice, two gradients of one normalisation are rounded apart
            same({name: found[name] for name in used}, {name: wanted[name] for name in used}, 2e-3)


def test_an_input_changed_in_place_before_the_output_is_read_is_an_error():
    class Changing(Chain):
        change = False

        def forward(self, x):
            x = x * 1
            h = self.bn1(self.conv1(x))
            if self.change:
                x.zero_()
            return self.readout(self.neurons(h).mean((-1, -2))).mean(0)

    net = Changing()
    hb.optimize(net, X, verbose=False)
    net.change = True
    with pytest.raises(RuntimeError, match=r"changed in place(?s:.)*undo=True"):
        net(X)


def test_parameters_replaced_before_the_output_is_read_are_an_error():
    net = Chain()
    hb.optimize(net, X, verbose=False)
    h = net.bn1(net.conv1(X))
    assert type(h) is Deferred
    net.bn1.weight = nn.Parameter(torch.rand(8))
    with pytest.raises(RuntimeError, match="parameter of a layer was changed"):
        h.sum()
    h = net.bn1(net.conv1(X))
    with torch.no_grad():
        net.conv1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="parameter of a layer was changed"):
        net.neurons(h)


def test_what_is_returned_too_is_left():
    class Both(Chain):
        def forward(self, x):
            h = self.bn1(self.conv1(x))
            return self.neurons(h), h

    net = Both()
    report = hb.optimize(net, X, verbose=False)
    assert "in a pass of its own: the caller reads" in row(report, "bn1")
    assert type(net(X)[1]) is torch.Tensor


def test_each_step_in_a_forward_of_its_own():
    net = Wrapped()
    reference = copy.deepcopy(net)
    before = pickle.dumps(net)
    report = hb.optimize(net, X, verbose=False)
    assert "in the neurons' pass" in row(report, "bn1.module")
    assert "in the neurons' pass" in row(report, "conv2.module.1")
    hb.optimize(net, undo=True, verbose=False)
    assert pickle.dumps(net) == before
    hb.optimize(net, X, verbose=False)
    alike(net, reference)
    assert net.conv2.__dict__["_fusing"]._made[2].explain() == "normalised in the neurons' own pass"


def test_a_gradient_past_torchs_functions_is_an_error_not_lost():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    class Custom(Chain):
        custom = False

        def forward(self, x):
            h = self.bn1(self.conv1(x))
            out = Twice.apply(h) if self.custom else self.neurons(h)
            return self.readout(out.mean((-1, -2))).mean(0)

    net = Custom()
    hb.optimize(net, X, verbose=False)
    net.custom = True
    with pytest.raises(RuntimeError, match=r"hibana\.optimize.*undo=True"):
        net(X).sum().backward()
    left = Custom()
    left.custom = True
    report = hb.optimize(left, X, verbose=False)
    assert "in a pass of its own" in row(report, "bn1")
    left(X).sum().backward()


def test_hooks_see_what_they_saw():
    net = Chain()
    reference = by_hand(net)
    hb.optimize(net, X, verbose=False)
    seen = []
    for each in (net, reference):
        each.neurons.register_forward_hook(lambda _, args, out: seen.append((args[0].mean(), out.mean())))
        each(X)
    assert len(seen) == 4
    torch.testing.assert_close(seen[:2], seen[2:], rtol=1e-4, atol=1e-5)
    for each in (net, reference):
        each.neurons.register_full_backward_hook(lambda *_: None)
    alike(net, reference)


def test_what_is_neither_eager_nor_float32_is_the_plain_network():
    net = Chain().eval()
    reference = by_hand(net)
    hb.optimize(net, X, verbose=False)
    with torch.inference_mode():
        torch.testing.assert_close(net(X), reference(X), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net.double()(X.double()), reference.double()(X.double()))
    net, reference = net.float(), reference.float()
    torch.testing.assert_close(hb.run(net, X)[0], reference(X), rtol=1e-3, atol=1e-4)
    parameters = dict(net.named_parameters())
    called = torch.func.functional_call(net, parameters, (X,))
    torch.testing.assert_close(called, reference(X), rtol=1e-3, atol=1e-4)


def test_checkpointed_parts():
    class Kept(Chain):
        def block(self, x):
            return self.neurons(self.bn1(self.conv1(x)))

        def forward(self, x):
            x = checkpoint(self.block, x, use_reentrant=False)
            x = self.neurons(self.bn2(self.conv2(x)))
            return self.readout(x.mean((-1, -2))).mean(0)

    net = Kept().eval()
    reference = by_hand(net)
    hb.optimize(net, X, verbose=False)
    same(results(net, X), results(reference, X))


def test_it_is_copied_and_pickled():
    for kind in (Chain, Image):
        net = kind().eval()
        hb.optimize(net, X, verbose=False)
        wanted = net(X)
        for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert isinstance(again, kind)
            torch.testing.assert_close(again(X), wanted)
            assert "_fusing" in vars(again.bn1)
            hb.optimize(again, undo=True, verbose=False)
            assert type(again) is kind


def test_a_network_of_images_is_called_with_steps_joined():
    net = Image()
    reference, names = Flattened(net, len(X)), [*net.state_dict()]
    report = hb.optimize(net, X, verbose=False)
    assert row(report, "-").split(maxsplit=2)[1:] == ["Image", "called with time and batch joined"]
    assert "in the neurons' pass" in row(report, "bn2")
    assert isinstance(net, Image)
    alike(net, reference)
    assert net.bn1.__dict__["_fusing"]._made[2].explain() == "normalised in the neurons' own pass"
    assert [*net.state_dict()] == names
    one = hb.optimize(Image(), X[:, :1], verbose=False)
    assert "joined" in str(one)
    with pytest.raises(ValueError, match=r"must be \[T, batch, \.\.\.\] of 5 dimensions"):
        net(X[0])
    whole, _ = hb.run(net.eval(), X)
    first, state = hb.run(net, X[:2])
    rest, _ = hb.run(net, X[2:], state)
    torch.testing.assert_close(torch.cat([first, rest]), whole)


@pytest.mark.parametrize("training", [True, False])
def test_resnet_of_torchvision(training):
    models = pytest.importorskip("torchvision.models")
    net = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU):
            net.set_submodule(name, hb.IF())
    x = torch.rand(3, 2, 3, 32, 32)
    reference, names = Flattened(net, 3), [*net.state_dict()]
    before = pickle.dumps(net)
    report = hb.optimize(net, x, verbose=False)
    assert str(report).count("in the neurons' pass") == 5
    assert "in a pass of its own" in row(report, "layer1.0.bn2")
    assert [*net.state_dict()] == names
    hb.optimize(net, undo=True, verbose=False)
    assert pickle.dumps(net) == before
    hb.optimize(net, x, verbose=False)
    net.train(training)
    reference.train(training)
    found, wanted = results(net, x), results(reference, x)
    same(found, {name.removeprefix("net."): value for name, value in wanted.items()})


def test_one_that_means_two_things_is_refused():
    class Two(Image):
        def forward(self, x):
            x = self.neurons(self.bn1(self.conv1(x)))
            return x - x.mean(0, keepdim=True)

    net = Two()
    with pytest.raises(RuntimeError, match=r"can't be seen.*hibana\.EachStep"):
        hb.optimize(net, X, verbose=False)
    assert type(net.conv1) is nn.Conv2d
    assert type(net) is Two
