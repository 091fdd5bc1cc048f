"""`hb.SparseLinear` equals a dense layer with a mask, with and without delays."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb


def test_equals_the_masked_dense_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 7).double()
    mask = torch.rand(7, 12) < 0.3
    layer = hb.SparseLinear.from_linear(linear, mask).double()
    x = torch.rand(5, 3, 12, dtype=torch.float64, requires_grad=True)
    dense = x @ (linear.weight * mask).T + linear.bias
    assert torch.allclose(layer(x), dense)
    assert torch.equal(layer.to_dense(), (linear.weight * mask).detach())
    gradient = torch.rand_like(dense)
    expected = torch.autograd.grad(dense, [x, linear.weight], gradient)
    to_x, to_weight = torch.autograd.grad(layer(x), [x, layer.weight], gradient)
    assert torch.allclose(to_x, expected[0])
    assert torch.allclose(to_weight, expected[1][layer.targets.long(), layer.sources])


def test_delays_are_whole_steps_and_continue_in_pieces() -> None:
    torch.manual_seed(0)
    delays = torch.randint(0, 5, (4, 6))
    layer = hb.SparseLinear(6, 4, torch.ones(4, 6, dtype=torch.bool), delays=delays)
    x = (torch.rand(20, 2, 6) < 0.3).float()
    weight, expected = layer.to_dense(), torch.zeros(20, 2, 4)
    for t in range(20):
        for o in range(4):
            for i in range(6):
                if t >= delays[o, i]:
                    expected[t, :, o] += weight[o, i] * x[t - delays[o, i], :, i]
    expected = (expected + layer.bias).detach()
    assert torch.allclose(layer(x), expected, atol=1e-6)
    first, state = hb.run(layer, x[:3])
    second, _ = hb.run(layer, x[3:], state)
    assert torch.allclose(torch.cat([first, second]), expected, atol=1e-6)


@pytest.mark.parametrize("has_delays", [False, True])
def test_copies_keep_synapses(has_delays: bool) -> None:
    delays = torch.full((4, 6), 2) if has_delays else None
    layer = hb.SparseLinear(6, 4, 0.5, delays=delays)
    x = torch.rand(5, 2, 6)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
