"""Writes to spikes below a layer that works per spike: the gradients stay those of autograd.

A write that autograd does not record changes the input of the layer above, but not the gradient of the
spiking layer, which is that of the emitted spikes.
"""

import copy
import ctypes
import random

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import hibana as hb
from hibana import surrogate

WRITES = {
    "mul_": lambda s, mask: s.mul_(mask),
    "zero_": lambda s, mask: s.zero_(),
    "masked_fill_": lambda s, mask: s.masked_fill_(mask == 0, 0.0),
    "index": lambda s, mask: s[1].__setitem__(slice(None), 0.0),
    "set to one": lambda s, mask: s.masked_fill_(mask == 0, 1.0),
    "detach": lambda s, mask: s.detach().mul_(mask),
    "view": lambda s, mask: s.flatten(0, 1).mul_(mask.flatten(0, 1)),
    "data": lambda s, mask: s.data.mul_(mask),
    "another data": lambda s, mask: setattr(s, "data", s.data * mask),
    "numpy": lambda s, mask: s.detach().numpy().__imul__(mask.numpy()),
}
SIGMAS = [surrogate.Step(), surrogate.Box(), surrogate.ATan()]


def _write(name, spikes):
    mask = (torch.rand(spikes.shape, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    with torch.no_grad():
        WRITES[name](spikes, mask)


def _gradients(net, x, write, after):
    """The output and every gradient of `net`, with `write` applied to the output of layer `after`."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    h = x
    for i, layer in enumerate(net):
        h = layer(h)
        if i == after and write is not None:
            _write(write, h)
    h.mul(torch.linspace(-1, 1, h.numel()).view(h.shape)).sum().backward()
    return [h.detach(), x.grad, *(p.grad for p in net.parameters())]


def _sparse_and_dense(net):
    """Two copies of `net`: one by events, one dense whose neurons use the reference loop."""
    sparse, dense = hb.events.adopt(copy.deepcopy(net)), copy.deepcopy(net)
    for inner in sparse.modules():
        if isinstance(inner, hb.Linear | hb.Conv2d):
            inner.mode = "events"
    for inner in dense.modules():
        if isinstance(inner, hb.OverTime):
            inner.forward = lambda x, cell=inner.cell: hb.unroll(cell, x, backend="reference")[0]
    return sparse, dense


def _compare(net, x, write, after):
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * 1024).round() / 1024)  # sums are exact in any order
    sparse, dense = _sparse_and_dense(net)
    results, expected = _gradients(sparse, x, write, after), _gradients(dense, x, write, after)
    assert expected[1].abs().sum() > 0
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


class _Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class _Halved(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0] * 2, x.shape[1] // 2, x.shape[2])


BETWEEN = {
    "nothing": lambda: [],
    "flattened": lambda: [nn.Flatten(0, 1)],
    "viewed": lambda: [_Halved()],
    "transposed": lambda: [_Transposed()],
    "each step": lambda: [hb.EachStep(nn.Identity())],
}


@pytest.mark.cover(2)
@pytest.mark.parametrize("sigma", SIGMAS, ids=repr)
@pytest.mark.parametrize("write", [None, *WRITES])
@pytest.mark.parametrize("between", BETWEEN)
def test_a_linear_layer_above_spikes_that_were_written_to(sigma, write, between):
    net = nn.Sequential(
        nn.Linear(20, 64), hb.IF(0.3, sigma, detach_reset=True), *BETWEEN[between](), nn.Linear(64, 7)
    )
    x = (torch.rand(6, 64, 20) * 16).round() / 16
    _compare(net, x, write, after=1)


@pytest.mark.parametrize("neurons", [60, 63, 100])
def test_steps_that_fill_no_words_of_bits_and_were_written_to(neurons):
    net = nn.Sequential(
        nn.Linear(20, neurons), hb.IF(0.3, surrogate.Step(), detach_reset=True), nn.Linear(neurons, 7)
    )
    x = (torch.rand(6, 3, 20) * 16).round() / 16
    for write in (None, "mul_", "zero_"):
        _compare(net, x, write, after=1)


@pytest.mark.cover(2)
@pytest.mark.parametrize("sigma", SIGMAS, ids=repr)
@pytest.mark.parametrize("write", [None, *WRITES])
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_convolution_pooling_and_flattening_above_spikes_that_were_written_to(sigma, write, channels, after):
    net = nn.Sequential(
        hb.EachStep(nn.Conv2d(2, channels, 3, padding=1)),
        hb.IF(0.5, sigma, detach_reset=True),
        hb.EachStep(nn.MaxPool2d(2)),
        hb.EachStep(nn.Conv2d(channels, 16, 3, padding=1)),
        hb.IF(0.5, sigma, detach_reset=True),
        nn.Flatten(2),
        nn.Linear(16 * 4 * 4, 5),
    )
    nn.init.constant_(net[3].module.bias, 0.25)  # fires without input
    x = (torch.rand(4, 3, 2, 8, 8) * 16).round() / 16
    _compare(net, x, write, after)


@pytest.mark.parametrize("write", ["mul_", "detach", "zero_"])
def test_a_convolution_of_written_channels_first_spikes(write):
    conv = nn.Conv2d(16, 8, 3, padding=1)
    net = nn.Sequential(nn.Identity(), hb.IF(0.5, surrogate.Step(), detach_reset=True), hb.EachStep(conv))
    _compare(net, (torch.rand(4, 3, 16, 8, 8) * 16).round() / 16, write, after=1)


def test_flatten_returns_a_view_for_autograd():
    results = []
    for flatten in (hb.events.Flatten(0, 1), nn.Flatten(0, 1)):
        x = torch.linspace(0, 1, 4 * 3 * 16 * 36).view(4, 3, 6, 6, 16).permute(0, 1, 4, 2, 3).requires_grad_()
        spikes = hb.IF(0.5, surrogate.Step(), detach_reset=True)(x)
        flatten(spikes).mul_(0.5)  # writes to the spikes, which autograd records
        spikes.square().sum().backward()
        results.append((spikes.detach(), x.grad))
    for result, expected in zip(*results, strict=True):
        assert torch.equal(result, expected)


def test_a_write_to_a_view_of_the_output_keeps_its_hooks():
    layer = hb.Linear(6, 3)
    layer.mode = "events"
    x = (torch.rand(4, 2, 6) < 0.3).float().requires_grad_()
    out = layer(x)
    out.retain_grad()
    other = out.view(-1)
    with torch.no_grad():
        other.mul_(0.5)
    other.square().sum().backward()
    assert layer.explain().startswith("events")
    assert torch.equal(out.grad, 2 * out.detach())


def _through_address(spikes, place, value):
    address = spikes.data_ptr() + 4 * place
    ctypes.cast(address, ctypes.POINTER(ctypes.c_float))[0] = value


def _flat(memory):
    """A flat view of `memory`, in memory order."""
    return memory.as_strided((memory.numel(),), (1,))


def _all_of_storage(spikes):
    return torch.empty(0).set_(spikes.untyped_storage())[spikes.storage_offset() :]


ONE_NUMBER = {
    "data": lambda s, place, value: _flat(s.data)[place].fill_(value),
    "a view's data": lambda s, place, value: _flat(s.detach().flatten(0, 1).data)[place].fill_(value),
    "NumPy": lambda s, place, value: _flat(s.detach()).numpy().__setitem__(place, value),
    "DLPack": lambda s, place, value: torch.from_dlpack(_flat(s.detach()))[place].fill_(value),
    "torch.utils.dlpack": lambda s, place, value: torch.utils.dlpack.from_dlpack(
        torch.utils.dlpack.to_dlpack(_flat(s.detach()))
    )[place].fill_(value),
    "the storage": lambda s, place, value: _all_of_storage(s)[place].fill_(value),
    "the address": _through_address,
}
IMAGES = 4, 4, 16, 16, 16
"""Shape of 65,536 numbers."""
READERS = {
    "Linear": lambda: nn.Sequential(_Rows(), hb.Linear(64, 8)),
    "Conv2d": lambda: hb.EachStep(hb.Conv2d(16, 8, 3, padding=1)),
    "Conv1d": lambda: nn.Sequential(nn.Flatten(-2), hb.EachStep(hb.events.Conv1d(16, 8, 3))),
    "MaxPool2d": lambda: nn.Sequential(
        hb.EachStep(hb.events.MaxPool2d(2)), hb.EachStep(hb.Conv2d(16, 8, 3, padding=1))
    ),
    "MaxPool2d of windows that do not fill words": lambda: nn.Sequential(
        hb.EachStep(hb.events.MaxPool2d(5)), hb.EachStep(hb.Conv2d(16, 8, 3, padding=1))
    ),
    "Flatten": lambda: nn.Sequential(hb.events.Flatten(2), hb.Linear(4096, 8)),
    "add": lambda: nn.Sequential(_Doubled(), hb.EachStep(hb.Conv2d(16, 8, 1))),
    "Normalized": lambda: hb.Normalized(
        hb.EachStep(nn.Sequential(hb.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8))), hb.IF(1.0)
    ).eval(),
    "Window": lambda: hb.Window(16, 8, 2),
    "DelayedLinear": lambda: nn.Sequential(_Rows(), hb.DelayedLinear(64, 8, 2)),
    "delays of two steps": lambda: nn.Sequential(_Rows(), hb.DelayedLinear(64, 8, 2, sigma=0.0)),
}


class _Rows(nn.Module):
    def forward(self, spikes):
        return spikes.reshape(len(spikes), -1, 64)


class _Doubled(nn.Module):
    def forward(self, spikes):
        return hb.events.add(spikes, spikes)


class _Dense(nn.Module):
    """A dense copy of `reader`, whose input carries no information about spikes."""

    def __init__(self, reader):
        super().__init__()
        self.reader = copy.deepcopy(reader)
        for inner in self.reader.modules():
            if hasattr(inner, "mode"):
                inner.mode = "dense"

    def forward(self, spikes):
        return self.reader(spikes * 1.0)


def _by_events(reader):
    for inner in reader.modules():
        if hasattr(inner, "mode"):
            inner.mode = "events"
        for parameter in inner.parameters(recurse=False):
            parameter.data.mul_(64).round_().div_(64)  # sums are exact in any order
    return reader


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box()], ids=repr)
@pytest.mark.parametrize("reader", READERS)
def test_a_write_to_one_number_is_detected_at_any_place(reader, sigma):
    rng = random.Random(f"{reader} {sigma}")
    layer = _by_events(READERS[reader]())
    dense, neurons = _Dense(layer), hb.IF(1.0, sigma, detach_reset=True)
    currents = (torch.rand(IMAGES) * 8).round().div(8)
    if "Rows" not in repr(layer):
        currents = currents.movedim(2, -1).contiguous().movedim(-1, 2)  # channels last
    currents.requires_grad_()
    emitted = neurons(currents).detach()
    for write in [None, *list(ONE_NUMBER) * 4]:
        spikes = neurons(currents)
        if write is not None:
            ONE_NUMBER[write](spikes, rng.randrange(spikes.numel()), rng.choice([0.0, 1.0, 0.5, 3.0]))
        written = spikes.detach().clone().requires_grad_()
        outputs, expected_outputs = layer(spikes), dense(written)
        torch.testing.assert_close(outputs, expected_outputs, rtol=1e-5, atol=1e-5)
        factors = torch.randint(-4, 5, outputs.shape).float()
        (grad,) = torch.autograd.grad((outputs * factors).sum(), currents, retain_graph=True)
        currents.grad = None
        (outputs * factors).sum().backward()  # may skip parts of the gradient of the spikes
        (expected_outputs * factors).sum().backward()
        (expected,) = torch.autograd.grad((neurons(currents) * written.grad).sum(), currents)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(currents.grad, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(neurons(currents), emitted)


@pytest.mark.parametrize("layer", [hb.IF(), hb.LIF(surrogate=hb.surrogate.ATan())], ids=repr)
@pytest.mark.filterwarnings("ignore:.*use_reentrant")
def test_channels_last_spikes_of_a_reentrant_checkpoint_are_written_to(layer):
    images = torch.rand(3, 2, 5, 5, 4).permute(0, 1, 4, 2, 3)  # [T, batch, channels, height, width]
    results = []
    for call in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)):
        x = images.clone().requires_grad_()
        spikes = call(x * 2)
        with torch.no_grad():
            spikes.mul_(0.5)
        spikes.square().sum().backward()
        results.append((spikes.detach(), x.grad))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
