"""Sums of a convolution that are left to who normalises them, and reads them from the cache in pieces."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.backend import Producer
from hibana.compiler.cpu.kernels import CpuKernels
from hibana.compiler.cpu.walk import MULTIPLE
from hibana.nn.normalized import kernels as of_normalized
from hibana.nn.normalized import layer as normalized
from hibana.spikes.convolution import autograd

PRODUCED = [
    (32, 64, (16, 16), 3, 1, 3, True),
    (40, 32, (30, 14), 5, 1, 2, True),
    (70, 128, (64, 64), 3, 1, 1, True),
    (32, 20, (11, 13), 3, 1, 2, True),
    (128, 32, (8, 8), 3, 1, 16, True),
    (32, 64, (16, 20), 3, 2, 3, True),
    (70, 64, (16, 16), 3, 2, 3, False),  # gathered under windows
    (32, 1024, (10, 40), 5, 1, 1, False),  # rows that the cache does not hold enough of
]
"""Channels, outputs, size, kernel, stride and batch, and whether the sums may be left to who reads them."""
each_way = pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "batch", "produced"), PRODUCED
)


def _numbers(batch, channels, size):
    shape = 4 * batch, channels, *size
    numbers = ((torch.rand(shape) < 0.2) * torch.randint(1, 4, shape)).float()
    return numbers.contiguous(memory_format=torch.channels_last).view(4, batch, channels, *size)


def _normalised(monkeypatch, channels, outputs, kernel, stride):
    monkeypatch.setattr(normalized, "FUSED_FROM", 0)
    convolution = hb.Conv2d(channels, outputs, kernel, stride, kernel // 2)
    convolution.mode = "events"
    norm = nn.BatchNorm2d(outputs)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return hb.Normalized(hb.EachStep(nn.Sequential(convolution, norm)), hb.LIF(surrogate=hb.surrogate.ATan()))


@pytest.mark.cover(1)
@pytest.mark.parametrize("threads", [1, 2])
@each_way
def test_moments_of_sums_are_taken_from_the_cache_and_gradients_stay_what_they_are(
    monkeypatch, channels, outputs, size, kernel, stride, batch, produced, threads
):
    layer = _normalised(monkeypatch, channels, outputs, kernel, stride)
    layer[0].module[0].bias.requires_grad_(False)  # whose gradient is what was rounded
    x = _numbers(batch, channels, size).requires_grad_()
    runs = []
    monkeypatch.setattr(of_normalized, "moments_of_pieces", _counted(of_normalized.moments_of_pieces, runs))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = []
        for left in (True, False):
            if not left:
                monkeypatch.setattr(autograd, "producer", lambda *given: None)
            torch.manual_seed(0)
            out = layer(x)
            seen = torch.randn(out.shape)
            learned = [x, *(p for p in layer.parameters() if p.requires_grad)]
            found.append([out.detach(), *torch.autograd.grad((out * seen).sum(), learned)])
            assert len(runs) == produced
        for got, wanted in zip(*found, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    finally:
        torch.set_num_threads(before)


def test_weights_below_a_normalisation_that_learns_nothing_get_their_gradient_in_evaluation(monkeypatch):
    layer = _normalised(monkeypatch, 32, 64, 3, 1).eval()
    layer[0].module[1].requires_grad_(False)
    x = _numbers(3, 32, (16, 16))
    found = []
    for left in (True, True, False):
        if not left:
            monkeypatch.setattr(autograd, "producer", lambda *given: None)
        layer.zero_grad()
        layer(x).square().sum().backward()
        found.append(layer[0].module[0].weight.grad)
        assert found[-1].count_nonzero()
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


@torch.no_grad()
@pytest.mark.cover(1)
@pytest.mark.parametrize("threads", [1, 2])
@each_way
def test_a_normalised_layer_reads_sums_from_the_cache_to_the_same_bits(
    monkeypatch, channels, outputs, size, kernel, stride, batch, produced, threads
):
    layer = _normalised(monkeypatch, channels, outputs, kernel, stride).eval()
    x = _numbers(batch, channels, size)
    runs, finished = [], []
    monkeypatch.setattr(CpuKernels, "forward_over", _counted(CpuKernels.forward_over, runs))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        layer(x)  # the first time the step is compiled
        monkeypatch.setattr(Producer, "finish", _counted(Producer.finish, finished))
        found = [layer(x) for _ in range(2)][-1]
        assert len(runs) == (2 if produced else 0)
        assert len(finished) == (2 if produced and found[0, 0].numel() % MULTIPLE else 0)
        monkeypatch.setattr(autograd, "producer", lambda *given: None)
        assert torch.equal(layer(x), found)
        assert 0 < found.mean() < 1
    finally:
        torch.set_num_threads(before)


def _counted(function, runs):
    def counted(*given, **named):
        runs.append(given)
        return function(*given, **named)

    return counted
