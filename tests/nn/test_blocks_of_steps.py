"""Recurrent synapses with delays: blocks of steps up to the shortest delay, as a loop over single steps."""

import pytest
import torch

import hibana as hb
from hibana.nn.sparse_linear import DelayedSparseLinear


def network(shortest, longest, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sources, targets = torch.randint(0, 30, (2, 200), generator=generator)
    delays = torch.randint(shortest, longest + 1, (200,), generator=generator)
    delays[0], delays[1] = shortest, longest
    weights = torch.randint(-40, 60, (200,), generator=generator) / 32
    synapses = hb.connect.Connections.from_pairs(sources, targets, (30, 30), delays, weights)
    layer = hb.SparseLinear(30, 30, synapses, bias=False)
    return hb.Recurrent(hb.LIFCell(tau=4.0, surrogate="ATan"), 30, layer, gradient_scale=1.0).to(dtype)


def results(net, inputs, *, chunks=None):
    inputs = inputs.clone().requires_grad_()
    state, outputs = None, []
    for chunk in inputs.split(chunks or len(inputs)):
        out, state = hb.run(net, chunk, state)
        outputs.append(out)
    outputs = torch.cat(outputs)
    (outputs.cumsum(0) * torch.linspace(-1, 1, outputs.shape[-1])).sum().backward()
    gradients = inputs.grad, net.recurrent.weight.grad.clone()
    net.zero_grad()
    return outputs.detach(), *gradients, *state[""]


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (4, 4), (3, 9), (0, 5), (60, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_give_the_spikes_and_gradients_of_single_steps(monkeypatch, shortest, longest, dtype):
    net = network(shortest, longest, dtype)
    assert net.recurrent.shortest == shortest
    inputs = torch.rand(50, 3, 30, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 0.6
    whole, parts = results(net, inputs), results(net, inputs, chunks=7)
    monkeypatch.setattr(DelayedSparseLinear, "shortest", 0)
    steps = results(net, inputs)
    assert 0.02 < steps[0].mean() < 0.9
    for blocks in (whole, parts):
        assert torch.equal(blocks[0], steps[0])
        for value, expected in zip(blocks[1:], steps[1:], strict=True):
            torch.testing.assert_close(value.detach(), expected.detach())


def test_a_block_is_as_long_as_the_shortest_delay_and_one_step(monkeypatch):
    from hibana.nn import layers

    lengths, unroll = [], layers.unroll_layer
    monkeypatch.setattr(
        layers,
        "unroll_layer",
        lambda cell, x, *rest, **named: lengths.append(len(x)) or unroll(cell, x, *rest, **named),
    )
    network(3, 9)(torch.rand(10, 2, 30))
    assert lengths == [4, 4, 2]


def test_the_gradient_of_the_weights_is_that_of_finite_differences():
    class Smooth(hb.Cell):
        """Emits its potential, so that the network is differentiable."""

        def forward(self, input_, v):
            return (torch.tanh(0.5 * v + input_),)

    generator = torch.Generator().manual_seed(0)
    sources, targets = torch.randint(0, 6, (2, 14), generator=generator)
    delays = torch.randint(2, 5, (14,), generator=generator)
    weights = torch.randn(14, generator=generator, dtype=torch.float64)
    synapses = hb.connect.Connections.from_pairs(sources, targets, (6, 6), delays, weights)
    net = hb.Recurrent(Smooth(), 6, hb.SparseLinear(6, 6, synapses, bias=False), gradient_scale=1.0).double()
    inputs = torch.randn(11, 2, 6, generator=generator, dtype=torch.float64)

    def loss():
        return (net(inputs) * torch.linspace(-1, 1, 6, dtype=torch.float64)).sum()

    loss().backward()
    weight = net.recurrent.weight
    for i in range(14):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[i] += step
                values.append(loss().item())
                weight[i] -= step
        assert weight.grad[i].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8)
