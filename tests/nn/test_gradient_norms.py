"""The norms for plots equal those of autograd through the reference loop."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.plot import gradient_norms

SMOOTH = hb.surrogate.ATan()


def network(*, adopt=False, surrogate=SMOOTH, width=64):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, width),
        hb.LIF(tau=4.0, surrogate=surrogate),
        nn.Linear(width, 3),
        hb.LI(tau=8.0),
    )
    with torch.no_grad():
        net[0].weight.mul_(4)
    if adopt:
        hb.events.adopt(net)
        net[2].mode = "events"  # at this size "auto" would be dense
    return net


def objective(outputs, labels):
    return nn.functional.cross_entropy(outputs.mean(0), labels)


def batch(steps=12, size=32):
    return torch.rand(steps, size, 6), torch.arange(size) % 3


def by_hand(net, inputs, labels):
    """Norms at outputs and inputs of both layers, through the reference loop and ``backward``."""
    tensors = []
    x = inputs
    for module in net:
        if isinstance(module, hb.OverTime):
            tensors.append(x)
            x, _ = hb.unroll(module.cell, x, backend="reference")
            tensors.append(x)
        else:
            x = nn.functional.linear(x, module.weight, module.bias)
    for tensor in tensors:
        tensor.retain_grad()
    objective(x, labels).backward()
    net.zero_grad()
    norms = [tensor.grad.flatten(1).norm(dim=1) for tensor in tensors]
    return {"inputs": norms[::2], "outputs": norms[1::2]}


@pytest.mark.cover(2)
@pytest.mark.parametrize("of", ["outputs", "inputs"])
@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("surrogate", [hb.surrogate.ATan(), hb.surrogate.Step(), hb.surrogate.Box()])
def test_norms_are_autograds_through_the_reference(of, adopt, surrogate):
    net, (inputs, labels) = network(adopt=adopt, surrogate=surrogate), batch()
    expected_norms = by_hand(net, inputs, labels)[of]
    norms = gradient_norms(net, objective, inputs, labels, of=of)
    if adopt:
        assert net[2].explain().startswith("events")  # skips gradients that nothing reads
    assert list(norms) == ["1", "3"]
    for norm, expected in zip(norms.values(), expected_norms, strict=True):
        assert norm.shape == (12,)
        assert (norm > 0).all()
        assert torch.allclose(norm, expected, rtol=1e-4, atol=1e-8)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_gradients_of_parameters_and_training_mode_stay():
    net, (inputs, labels) = network(), batch()
    objective(net(inputs), labels).backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    with torch.no_grad():
        gradient_norms(net.eval(), objective, inputs, labels)
    assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before, strict=True))
    assert not net.training


def test_gradients_at_inputs_include_later_steps():
    net, (inputs, labels) = network(), batch()

    def last_step_loss(outputs, labels):
        return nn.functional.cross_entropy(outputs[-1], labels)

    at_outputs = gradient_norms(net, last_step_loss, inputs, labels)["3"]
    at_inputs = gradient_norms(net, last_step_loss, inputs, labels, of="inputs")["3"]
    assert (at_outputs[:-1] == 0).all()
    assert torch.allclose(at_inputs, at_outputs[-1] * (1 - 1 / 8) ** torch.arange(11.0, -1, -1))


def test_an_input_that_does_not_change_has_a_gradient_at_each_step():
    net, (inputs, labels) = network(), batch()
    still = inputs[:1].expand(12, -1, -1)
    norms = gradient_norms(hb.events.adopt(net), objective, still, labels, of="inputs")["1"]
    expected = gradient_norms(network(), objective, still.contiguous(), labels, of="inputs")["1"]
    assert torch.allclose(norms, expected, rtol=1e-4)
    assert norms[0] != norms[-1]


def test_each_step_of_an_expanded_output_has_a_gradient():
    class Expanded(nn.Module):
        def __init__(self, copied):
            super().__init__()
            self.copied, self.first, self.second = copied, hb.LI(), hb.LIF(surrogate=SMOOTH)

        def forward(self, x):
            last = self.first(x)[-1:].expand(12, -1, -1)
            return self.second(last.contiguous() if self.copied else last)

    inputs, labels = batch()
    expanded, copied = (
        gradient_norms(Expanded(c), objective, inputs, labels, of="inputs") for c in (False, True)
    )
    assert torch.allclose(expanded["second"], copied["second"], rtol=1e-4)
    assert torch.allclose(expanded["first"], copied["first"], rtol=1e-4)


def test_recurrent_layers_and_layers_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = hb.Recurrent(hb.LIFCell(surrogate=hb.surrogate.ATan()), 6)
            self.again = hb.IF(surrogate=hb.surrogate.ATan())

        def forward(self, x):
            return self.again(self.again(inputs=self.first(3 * x)) * 2)

    norms = gradient_norms(Twice(), objective, *batch(), of="inputs")
    assert list(norms) == ["first", "again", "again#1"]
    assert all((norm > 0).any() for norm in norms.values())


def test_the_norms_of_an_unused_layer_are_zero():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = hb.LI(), hb.LI()

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    norms = gradient_norms(Aside(), objective, *batch())
    assert torch.equal(norms["unused"], torch.zeros(12))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="net must call at least one layer of hibana"):
        gradient_norms(nn.Linear(6, 3), objective, *batch())
    with pytest.raises(ValueError, match="of must be 'outputs' or 'inputs', got 'weights'"):
        gradient_norms(network(), objective, *batch(), of="weights")
