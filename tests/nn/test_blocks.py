"""Parts of deep networks: dropout over time, normalization to a threshold, checkpointed blocks."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hibana as hb
from hibana.spikes.packed_tensor import PackedTensor
from selection import examples


def test_a_neuron_is_dropped_for_all_steps_or_none():
    dropped = hb.StepsDropout(0.25)(torch.ones(6, 50, 40))
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    values, counts = dropped[0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 1 / 0.75])
    assert counts[0] / 2000 == pytest.approx(0.25, abs=0.04)
    layer = hb.StepsDropout(0.25).eval()
    x = torch.rand(3, 2, 4)
    assert layer(x) is x


def test_the_gradient_of_dropped_neurons_is_zero():
    x = torch.rand(4, 2, 30, requires_grad=True)
    out = hb.StepsDropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_normalization_to_a_threshold_equals_torchs_with_another_weight():
    ours, theirs = hb.ThresholdBatchNorm2d(5, threshold=0.5, alpha=0.7), nn.BatchNorm2d(5)
    nn.init.constant_(theirs.weight, 0.35)
    x = torch.randn(3, 4, 5, 6, 6)
    for _ in range(2):
        assert torch.equal(hb.EachStep(ours)(x), theirs(x.flatten(0, 1)).view(x.shape))
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    ours.reset_parameters()
    assert torch.equal(ours.weight.data, torch.full((5,), 0.35))


def test_normalization_to_a_threshold_can_be_folded():
    net = nn.Sequential(hb.EachStep(nn.Conv2d(2, 5, 3)), hb.EachStep(hb.ThresholdBatchNorm2d(5)))
    x = torch.randn(3, 4, 2, 6, 6)
    net(x)
    folded = hb.fold_batchnorm(net)
    assert type(folded[1].module) is nn.Identity
    torch.testing.assert_close(folded(x), net.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.StepsDropout(1.0), r"p must be in \[0, 1\), got 1.0"),
        (lambda: hb.StepsDropout()(torch.ones(3)), r"inputs must be \[T, batch, \.\.\.\], got shape \(3,\)"),
        (lambda: hb.ThresholdBatchNorm2d(3, threshold=0.0), "threshold must be positive, got 0.0"),
        (lambda: hb.ThresholdBatchNorm2d(3, alpha=-1.0), "alpha must be positive, got -1.0"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _blocks():
    def block(inputs, outputs):
        convolution = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
        return nn.Sequential(hb.EachStep(convolution), hb.IF(0.5, detach_reset=True))

    return nn.Sequential(block(2, 16), block(16, 16), block(16, 8))


@pytest.mark.parametrize("adopted", [False, True])
def test_checkpointed_blocks_have_the_gradients_and_statistics_of_the_plain_ones(adopted):
    plain = _blocks()
    if adopted:
        hb.events.adopt(plain)
        for inner in plain.modules():
            if isinstance(inner, hb.Conv2d):
                inner.mode = "events"
    checked = nn.Sequential(*(hb.Checkpointed(block) for block in copy.deepcopy(plain)))
    x = torch.rand(4, 3, 2, 8, 8)
    for _ in range(2):
        results = []
        for net in (plain, checked):
            net.zero_grad()
            out = net(x)
            out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            gradients = [p.grad for p in net.parameters()]
            results.append([out.detach(), *gradients, *(b.clone() for b in net.buffers())])
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)
    assert torch.equal(plain.eval()(x), checked.eval()(x))


def _plain(network, x):
    return network(x)


def _checked_by(use_reentrant):
    def checked(network, x):
        for block in network:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        return x

    return checked


def _checkpointed(network, x):
    return nn.Sequential(*map(hb.Checkpointed, network))(x)


def _checkpointed_views(network, x):
    for block in network:
        flat = x.flatten(1)
        x = hb.Checkpointed(nn.Sequential(nn.Unflatten(1, x.shape[1:]), block))(flat)
    return x


def _linear(drawn):
    inputs, hidden, outputs = (64 * drawn.randrange(1, 17) + drawn.choice([0, 0, 0, 10]) for _ in range(3))
    shape = drawn.choice([1, 2, 4, 8]), drawn.choice([1, 4, 16, 32, 64]), inputs
    layers = [[hb.Linear(inputs, hidden)], [hb.Linear(hidden, outputs)], [hb.Linear(outputs, inputs)]]
    return layers, shape


def _convolutional(drawn):
    channels, side = drawn.choice([8, 16, 24, 32, 64]), drawn.choice([4, 6, 8, 16])
    shape = drawn.choice([1, 2, 4]), drawn.choice([1, 2, 8]), channels, side, side
    last, pooling = nn.Flatten(2), hb.EachStep(hb.events.MaxPool2d(2))
    layers = [
        [hb.EachStep(hb.Conv2d(channels, channels, 3, padding=1))],
        [pooling, hb.EachStep(hb.Conv2d(channels, channels, 3, padding=1))],
        [hb.EachStep(hb.events.Flatten()) if drawn.random() < 0.5 else last],
    ]
    layers[2].append(hb.Linear(channels * (side // 2) ** 2, 256))
    return layers, shape


def _residual(drawn):
    class Sum(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.neurons = layer, hb.IF(0.2, detach_reset=True)

        def forward(self, x):
            return hb.events.add(x, self.neurons(self.layer(x)))

    inputs = 64 * drawn.randrange(1, 9)
    shape = drawn.choice([2, 4]), drawn.choice([8, 32]), inputs
    layers = [[hb.Linear(inputs, inputs)], [Sum(hb.Linear(inputs, inputs))], [hb.Linear(inputs, inputs)]]
    return layers, shape


WAYS = {
    "module": _checkpointed,
    "module on views": _checkpointed_views,
    "checkpoint": _checked_by(False),
    "reentrant": _checked_by(True),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draw", [_linear, _convolutional, _residual])
def test_recomputing_a_checkpoint_changes_no_result_at_any_size(way, draw):
    drawn = random.Random(0)
    torch.manual_seed(0)
    for _ in range(examples(15 if draw is _linear else 6)):
        layers, shape = draw(drawn)
        surrogate = drawn.choice([hb.surrogate.Step(), hb.surrogate.Box(), hb.surrogate.ATan()])
        neurons = [hb.IF(drawn.choice([0.05, 0.2, 1.0]), surrogate, detach_reset=True) for _ in layers]
        network = nn.Sequential(*(nn.Sequential(*a, b) for a, b in zip(layers, neurons, strict=True)))
        for parameter in network.parameters():
            parameter.data.mul_(64).round_().div_(64)  # sums are exact in any order
        x = (torch.rand(shape) < 0.2).float().requires_grad_()
        results = []
        for call in (_plain, WAYS[way]):
            for _ in range(2):
                x.grad = None
                network.zero_grad()
                out = call(network, x)
                torch.manual_seed(1)
                (out * torch.randint(-4, 5, out.shape)).sum().backward()
            results.append([out.detach(), x.grad, *(p.grad.clone() for p in network.parameters())])
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_spikes_between_blocks_are_saved_as_bits():
    saved, pack = [], PackedTensor.pack
    spikes = (torch.rand(4, 2, 16, 8, 8) < 0.2).float().requires_grad_()
    block = hb.Checkpointed(_blocks()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedTensor, "pack", lambda tensor: saved.append(pack(tensor)) or saved[-1])
        block(spikes)
    (border,) = (each for each in saved if isinstance(each, PackedTensor))
    assert border.shape == spikes.shape
    assert border.bits.nbytes == spikes.nbytes / 32


@pytest.mark.cover(2)
@pytest.mark.parametrize("factor", [1.0, 0.25, 1 / 0.7])
@pytest.mark.parametrize("highest", [1, 3, 15])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_unpacking_restores_a_packed_tensor(factor, highest, order):
    x = (torch.randint(0, highest + 1, (4, 16, 8, 10)) * factor).permute(order)
    packed = PackedTensor.pack(x)
    assert isinstance(packed, PackedTensor)
    unpacked = PackedTensor.unpack(packed)
    assert torch.equal(unpacked, x)
    assert unpacked.stride() == x.stride()


@pytest.mark.parametrize(
    "x", [torch.rand(80, 64), torch.ones(2, 64), torch.ones(80, 64)[:, ::2]], ids=range(3)
)
def test_tensors_that_are_not_packed_are_returned_unchanged(x):
    assert PackedTensor.pack(x) is x
    assert PackedTensor.unpack(x) is x
