"""Online rules and plasticity of sparse layers equal those of a dense layer with a mask, in float64."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph.ops import Unsupported

RULES = {
    "d-rtrl": "d-rtrl",
    "e-prop": "e-prop",
    "ottt": "ottt",
    "pp-prop": hb.learn.PPProp(decay=0.7),
}
CELLS = {
    "LIF": lambda: hb.LIF(tau=4.0, detach_reset=True, surrogate=hb.surrogate.ATan()),
    "CubaLIF": lambda: hb.OverTime(hb.CubaLIFCell(surrogate=hb.surrogate.ATan())),
}


def layers(bias=True):
    """A sparse layer, the dense layer with the same weights, and its mask, in float64."""
    torch.manual_seed(0)
    mask = torch.rand(7, 10) < 0.4
    dense = nn.Linear(10, 7, bias=bias).double()
    with torch.no_grad():
        dense.weight.mul_(mask).mul_(2)
    return hb.SparseLinear.from_linear(dense, mask).double(), dense, mask


def assert_equal(sparse, dense, attribute="data"):
    """Checks that the weights (or gradients) of stored synapses and the biases of both layers are equal."""
    actual, expected = getattr(sparse.weight, attribute), getattr(dense.weight, attribute)
    assert torch.allclose(actual, expected[sparse.targets.long(), sparse.sources], rtol=0, atol=1e-12)
    if sparse.bias is not None and getattr(sparse.bias, attribute) is not None:
        actual, expected = getattr(sparse.bias, attribute), getattr(dense.bias, attribute)
        assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_those_of_the_masked_layer(rule, cell, bias, readout):
    sparse, dense, _ = layers(bias)
    hidden, output = CELLS[cell](), nn.Linear(7, 2).double()
    end = [output, hb.LI(tau=3.0)] if readout else [output]
    if rule == "ottt" and cell == "CubaLIF":
        hidden = CELLS["LIF"]()
    x = (torch.rand(11, 3, 10) < 0.4).double()
    results = []
    for layer in (sparse, dense):
        net = nn.Sequential(layer, copy.deepcopy(hidden), *copy.deepcopy(end))
        inputs = x.clone().requires_grad_()
        learner = hb.learn.online(net, RULES[rule])
        outputs = []
        for chunk in inputs.split([1, 4, 1, 5]):
            y = learner.steps(chunk)
            (y - 0.3).square().sum().backward()
            outputs.append(y.detach())
        results.append((torch.cat(outputs), inputs.grad, learner.trace_numbers["1"]))
    (outputs, grad, numbers), (expected_outputs, expected_grad, dense_numbers) = results
    assert torch.allclose(outputs, expected_outputs, rtol=0, atol=1e-12)
    assert torch.allclose(grad, expected_grad, rtol=0, atol=1e-12)
    assert sparse.weight.grad.count_nonzero() > 0
    assert_equal(sparse, dense, "grad")
    if rule == "d-rtrl" and readout:  # one trace for each stored synapse
        assert numbers / dense_numbers == (len(sparse.weight) + 7 * bias) / (70 + 7 * bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_recurrent_synapses_equal_those_of_the_masked_layer(rule, bias):
    torch.manual_seed(0)
    mask = torch.rand(8, 8) < 0.4
    mask[0, 0] = True  # a synapse to itself
    linear = nn.Linear(8, 8, bias=bias).double()
    with torch.no_grad():
        linear.weight.mul_(mask)
    sparse, readout = hb.SparseLinear.from_linear(linear, mask).double(), nn.Linear(8, 2).double()
    x, results = torch.rand(9, 3, 8, dtype=torch.float64), []
    for synapses in (sparse, linear):
        cell = hb.LIFCell(tau=4.0, detach_reset=True, surrogate=hb.surrogate.ATan())
        recurrent = hb.Recurrent(cell, 8, synapses, gradient_scale=0.5)
        learner = hb.learn.online(nn.Sequential(recurrent, copy.deepcopy(readout)), RULES[rule])
        for chunk in x.split([4, 1, 4]):
            y = learner.steps(chunk)
            y.square().sum().backward()
        results.append(y)
    assert torch.allclose(*results, rtol=0, atol=1e-12)
    assert sparse.weight.grad.count_nonzero() > 0
    assert_equal(sparse, linear, "grad")


def test_state_of_sparse_traces_is_restored():
    sparse, *_ = layers()
    net = nn.Sequential(sparse, hb.LIF(), nn.Linear(7, 2).double(), hb.LI(tau=3.0))
    x = (torch.rand(8, 3, 10) < 0.4).double()
    learner = hb.learn.online(net)
    learner.steps(x[:4]).sum().backward()
    continued = hb.learn.online(net)
    continued.load_state_dict(learner.state_dict())
    grads = []
    for current in (learner, continued):
        net.zero_grad()
        current.steps(x[4:]).square().sum().backward()
        grads.append(sparse.weight.grad.clone())
    assert torch.equal(*grads)
    assert "synapse" in hb.learn.explain(net)


PAIRS = {"tau_pre": 8.0, "tau_post": 5.0}


@pytest.mark.parametrize(
    "options", [{}, {"bounds": (-1.0, 1.5), "soft": True}, {"bounds": (-0.9, 0.9)}, {"nearest": True}]
)
def test_stdp_equals_that_of_a_full_layer(options):
    dense = layers()[1]
    with torch.no_grad():
        dense.weight.clamp_(-0.8, 0.8)
    sparse = hb.SparseLinear.from_linear(dense, torch.ones(7, 10, dtype=torch.bool)).double()
    before = sparse.weight.detach().clone()
    x = (torch.rand(20, 2, 10) < 0.3).double()
    results = [
        hb.learn.STDP(linear, hb.LIF(tau=4.0, threshold=0.3), **PAIRS, **options)(x, return_state=True)
        for linear in (sparse, dense)
    ]
    (spikes, state), (expected, expected_state) = results
    assert torch.equal(spikes, expected)
    assert all(torch.allclose(*pair) for pair in zip(state, expected_state, strict=True))
    assert not torch.allclose(sparse.weight, before)
    assert_equal(sparse, dense)


def reward(rule, x):
    rule(x)
    rule.reward(torch.tensor([1.0, -0.5]))


def test_changes_at_constant_weights_equal_those_of_the_masked_layer():
    x = (torch.rand(20, 2, 10, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    neurons = hb.LIF(tau=4.0, threshold=0.3)
    for change in (
        lambda linear: hb.learn.STDP(linear, neurons, **PAIRS).gradient(x),
        lambda linear: hb.learn.Oja(linear, neurons, **PAIRS, rate=0.1)(x),
        lambda linear: reward(hb.learn.RewardModulatedSTDP(linear, neurons, **PAIRS, tau_eligibility=9.0), x),
    ):
        sparse, dense, _ = layers()
        before = sparse.weight.detach().clone()
        for linear in (sparse, dense):
            change(linear)
        assert sparse.weight.grad is not None or not torch.equal(sparse.weight, before)
        assert_equal(sparse, dense, "data" if sparse.weight.grad is None else "grad")


def test_unsupported_layers_are_named():
    delayed = hb.SparseLinear(10, 7, 0.5, delays=torch.ones(7, 10))
    with pytest.raises(TypeError, match="layer '0': no rule knows"):
        hb.learn.online(nn.Sequential(delayed, hb.LIF()))
    with pytest.raises(TypeError, match="SparseLinear without delays"):
        hb.learn.STDP(delayed, hb.LIF(), **PAIRS)
    recurrent = hb.Recurrent(hb.LIFCell(), 10, hb.SparseLinear(10, 10, 0.5, delays=torch.ones(10, 10)))
    with pytest.raises(TypeError, match=r"'0': recurrent must be .*, got DelayedSparseLinear"):
        hb.learn.online(nn.Sequential(recurrent))
    rule = hb.learn.STDP(hb.SparseLinear(10, 7), hb.LIF(), **PAIRS, backend="cpu")
    with pytest.raises(Unsupported, match="float32 on the CPU, got SparseLinear"):
        rule(torch.zeros(2, 1, 10))
