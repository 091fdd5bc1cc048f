"""Parameters that many neurons share, one for each channel or position."""

import pytest
import torch

import hibana as hb

LAST = (0, 1, 3, 4, 2)
"""Channels last, as a permutation of ``[T, batch, channels, height, width]``."""

CASES = {  # the shape of a sequence, how it lies in memory, the shape of the parameters
    "a number": ((3, 40, 50, 70), None, ()),
    "each neuron": ((3, 300, 512), None, (512,)),
    "each channel, which are last": ((3, 6, 64, 19, 19), LAST, (64, 1, 1)),
    "each channel, which are first": ((3, 6, 64, 19, 19), None, (64, 1, 1)),
    "each row of an image": ((3, 500, 30, 10), None, (30, 1)),
    "each pixel": ((3, 500, 30, 10), None, (30, 10)),
    "each sample": ((3, 500, 300), None, (500, 1)),
}


def run(backend, case, surrogate):
    shape, order, of = CASES[case]
    generator = torch.Generator().manual_seed(1)

    def drawn(size):
        return torch.rand(size, generator=generator)

    tau, threshold = (torch.nn.Parameter(5 * drawn(of) + 1.5), torch.nn.Parameter(drawn(of) + 0.5))
    x = 1.5 * drawn(shape)
    if order is not None:
        x = x.permute(order).contiguous().permute(sorted(range(5), key=order.__getitem__))
    x = x.requires_grad_()
    layer = hb.OverTime(hb.LIFCell(tau=tau, threshold=threshold, surrogate=surrogate), backend=backend)
    out = layer(x)
    out.backward(torch.sin(torch.arange(out.numel())).view(shape))
    return out.detach(), x.grad, tau.grad, threshold.grad


def check_alike(found, wanted):
    """Spikes to the bit, gradients to their tolerance."""
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.cover(1)
@pytest.mark.parametrize("surrogate", [hb.surrogate.Box(), hb.surrogate.ATan()], ids=["Box", "ATan"])
@pytest.mark.parametrize("case", CASES)
def test_shared_by(case, surrogate):
    found, wanted = (run(backend, case, surrogate) for backend in ("cpu", "reference"))
    assert 0.05 < found[0].mean() < 0.8
    check_alike(found, wanted)


def test_one_parameter_for_each_sample_beside_one_for_each_neuron():
    tau, threshold = torch.rand(512) + 2, torch.rand(300, 1) + 0.5
    x = 1.5 * torch.rand(3, 300, 512)
    found = []
    for backend in ("cpu", "reference"):
        both = [torch.nn.Parameter(value.clone()) for value in (tau, threshold)]
        out = hb.OverTime(hb.LIFCell(tau=both[0], threshold=both[1]), backend=backend)(x)
        out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
        found.append((out.detach(), *(value.grad for value in both)))
    check_alike(*found)


class Expanding(hb.Cell):
    """Its state is a parameter that the step itself expands to all neurons."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.tensor(0.9))
        self.each = torch.nn.Parameter(torch.linspace(0.5, 1, 512))

    def forward(self, input_, a_previous, b_previous, s_previous):
        a, b = self.one.expand_as(input_), self.each.expand_as(input_)
        return a, b, hb.Heaviside.apply(input_ * a_previous + b_previous - 1)


def test_a_parameter_that_a_step_expands_itself():
    found = []
    for backend in ("cpu", "reference"):
        cell, x = Expanding(), torch.linspace(0, 3, 3 * 300 * 512).view(3, 300, 512)
        out = hb.OverTime(cell, backend=backend)(x)
        out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
        found.append((out.detach(), cell.one.grad, cell.each.grad))
    check_alike(*found)
