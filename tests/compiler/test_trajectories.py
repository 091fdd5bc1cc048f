"""Training by compiled layers: the same losses as by the reference loop, step by step."""

import pytest
import torch
from torch import nn

import hibana as hb

STEPS = 25


def losses(backend, layer, surrogate, *, gradient_factor=1.0, **options):
    """The losses of 25 steps of gradient descent of a small network, in float64.

    Each parameter's gradient is multiplied by `gradient_factor`.
    """
    torch.manual_seed(3)
    options = {"surrogate": surrogate, "backend": backend, **options}
    net = nn.Sequential(
        nn.Linear(12, 40), layer(**options),
        nn.Linear(40, 24), layer(**options),
        nn.Linear(24, 4), hb.LI(backend=backend),
    ).double()  # fmt: skip
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: gradient_factor * gradient)
    inputs = (torch.rand(15, 16, 12) < 0.4).double()
    classes = torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    values = []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(net(2 * inputs).mean(0), classes)
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.tensor(values, dtype=torch.float64)


def assert_equal(actual, expected):
    assert actual[0] == expected[0]
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.cover(2)
@pytest.mark.parametrize("layer", [hb.IF, hb.LIF, hb.PLIF])
@pytest.mark.parametrize("surrogate", [hb.surrogate.Box(), hb.surrogate.ATan()])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_losses_equal_those_of_the_reference_loop(layer, surrogate, detach_reset):
    compiled, reference = (
        losses(backend, layer, surrogate, detach_reset=detach_reset) for backend in ("cpu", "reference")
    )
    assert compiled[-1] < compiled[0] - 0.05, "the loss must fall"
    assert_equal(compiled, reference)


def test_a_gradient_error_of_a_thousandth_changes_the_losses():
    right, wrong = (losses("cpu", hb.LIF, hb.surrogate.ATan(), gradient_factor=f) for f in (1.0, 1.001))
    assert right[0] == wrong[0]
    with pytest.raises(AssertionError):
        assert_equal(wrong, right)
