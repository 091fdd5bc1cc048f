"""A training compiled and by the reference loop: the same losses, step by step."""

import pytest
import torch
from torch import nn

import hibana as hb

STEPS = 25


def losses(backend, layer, surrogate, *, off=1.0, **options):
    """What a small network loses at each step of its training, in float64, where rounding stays small.

    `off` is what each parameter's gradient is multiplied by.
    """
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Linear(12, 40),
        layer(surrogate=surrogate, backend=backend, **options),
        nn.Linear(40, 24),
        layer(surrogate=surrogate, backend=backend, **options),
        nn.Linear(24, 4),
        hb.LI(backend=backend),
    ).double()
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: off * gradient)
    inputs = (torch.rand(15, 16, 12) < 0.4).double()
    classes = torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    found = []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(net(2 * inputs).mean(0), classes)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.cover(2)
@pytest.mark.parametrize("layer", [hb.IF, hb.LIF, hb.PLIF])
@pytest.mark.parametrize("surrogate", [hb.surrogate.Box(), hb.surrogate.ATan()])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_losses_are_those_of_the_reference_loop(layer, surrogate, detach_reset):
    compiled, reference = (
        losses(b, layer, surrogate, detach_reset=detach_reset) for b in ("cpu", "reference")
    )
    assert compiled[0] == reference[0]
    assert compiled[-1] < compiled[0] - 0.05, "it learns, so that there is something to compare"
    torch.testing.assert_close(compiled, reference, rtol=1e-8, atol=1e-8)


def test_a_gradient_off_by_a_thousandth_is_seen():
    right, wrong = (losses("cpu", hb.LIF, hb.surrogate.ATan(), off=off) for off in (1.0, 1.001))
    assert right[0] == wrong[0]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, right, rtol=1e-8, atol=1e-8)
