"""Parameters that many neurons share, one for each channel or position."""

import pytest
import torch

import hibana as hb

LAST = (0, 1, 3, 4, 2)
"""Channels last, as a permutation of ``[T, batch, channels, height, width]``."""

CASES = {  # shape of the sequence, memory order of its dimensions, shape of the parameters
    "a number": ((3, 40, 50, 70), None, ()),
    "each neuron": ((3, 300, 512), None, (512,)),
    "each channel, channels last": ((3, 6, 64, 19, 19), LAST, (64, 1, 1)),
    "each channel, channels first": ((3, 6, 64, 19, 19), None, (64, 1, 1)),
    "each row of an image": ((3, 500, 30, 10), None, (30, 1)),
    "each pixel": ((3, 500, 30, 10), None, (30, 10)),
    "each sample": ((3, 500, 300), None, (500, 1)),
}


def run(backend, case, surrogate):
    shape, order, dims = CASES[case]
    generator = torch.Generator().manual_seed(1)

    def draw(size):
        return torch.rand(size, generator=generator)

    tau, threshold = (torch.nn.Parameter(5 * draw(dims) + 1.5), torch.nn.Parameter(draw(dims) + 0.5))
    x = 1.5 * draw(shape)
    if order is not None:
        x = x.permute(order).contiguous().permute(sorted(range(5), key=order.__getitem__))
    x = x.requires_grad_()
    layer = hb.OverTime(hb.LIFCell(tau=tau, threshold=threshold, surrogate=surrogate), backend=backend)
    out = layer(x)
    out.backward(torch.sin(torch.arange(out.numel())).view(shape))
    return out.detach(), x.grad, tau.grad, threshold.grad


def check_alike(result, expected):
    """Checks that spikes are equal bit for bit, and gradients close."""
    assert torch.equal(result[0], expected[0])
    for a, b in zip(result[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.cover(1)
@pytest.mark.parametrize("surrogate", [hb.surrogate.Box(), hb.surrogate.ATan()], ids=["Box", "ATan"])
@pytest.mark.parametrize("case", CASES)
def test_shared_parameters_agree_with_the_reference(case, surrogate):
    result, expected = (run(backend, case, surrogate) for backend in ("cpu", "reference"))
    assert 0.05 < result[0].mean() < 0.8
    check_alike(result, expected)


def test_one_parameter_for_each_sample_beside_one_for_each_neuron():
    tau, threshold = torch.rand(512) + 2, torch.rand(300, 1) + 0.5
    x = 1.5 * torch.rand(3, 300, 512)
    results = []
    for backend in ("cpu", "reference"):
        parameters = [torch.nn.Parameter(value.clone()) for value in (tau, threshold)]
        out = hb.OverTime(hb.LIFCell(tau=parameters[0], threshold=parameters[1]), backend=backend)(x)
        out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
        results.append((out.detach(), *(value.grad for value in parameters)))
    check_alike(*results)


class ExpandingCell(hb.Cell):
    """Two states are parameters that the step expands to all neurons."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.tensor(0.9))
        self.each = torch.nn.Parameter(torch.linspace(0.5, 1, 512))

    def forward(self, input_, a_previous, b_previous, s_previous):
        a, b = self.one.expand_as(input_), self.each.expand_as(input_)
        return a, b, hb.Heaviside.apply(input_ * a_previous + b_previous - 1)


def test_a_parameter_that_a_step_expands_itself():
    results = []
    for backend in ("cpu", "reference"):
        cell, x = ExpandingCell(), torch.linspace(0, 3, 3 * 300 * 512).view(3, 300, 512)
        out = hb.OverTime(cell, backend=backend)(x)
        out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
        results.append((out.detach(), cell.one.grad, cell.each.grad))
    check_alike(*results)
