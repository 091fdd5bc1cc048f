"""Work per spike: the same outputs and gradients as torch's dense layers, also with hooks."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from hibana import surrogate
from hibana.compiler.memory_layout import constant_step
from hibana.spikes.bits import pack_bits
from hibana.spikes.linear import product
from hibana.spikes.simd.rows import panel
from selection import examples

ALWAYS_DENSE = "dense: no window covers the image", "dense: windows of one pixel that skip others"
"""Starts of the explanations of convolutions that torch computes in every mode."""


def _spikes(*shape, density):
    return (torch.rand(shape) < density).float()


def gradients(layer, x, weights):
    layer.zero_grad()  # else gradients add to those of the previous call
    x = x.clone().requires_grad_()
    out = layer(x)
    out.mul(weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("inputs", [1, 10, 16, 63, 64, 65, 100, 130])
@pytest.mark.parametrize("rows", [1, 63, 64, 131])
def test_rows_of_any_length_become_bits(rows, inputs):
    spikes = _spikes(rows, inputs, density=0.3)
    words, density = pack_bits(spikes)
    bits = words.view(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1
    expected = torch.nn.functional.pad(spikes, (0, -inputs % 64)).to(torch.uint8)
    assert torch.equal(bits.reshape(rows, -1), expected)
    assert density == pytest.approx(spikes.mean().item())
    for place in (0, rows * inputs - 1):
        changed = spikes.clone()
        changed.view(-1)[place] = 0.5
        assert pack_bits(changed)[1] is None


@settings(max_examples=examples(12))
@given(
    rows=st.sampled_from([1, 2, 65, 300, 600]),
    inputs=st.sampled_from([1, 63, 64, 130]),
    outputs=st.sampled_from([1, 10, 17, 64, 70]),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.22, 0.5, 1.0]),
    bias=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(rows, inputs, outputs, density, bias):
    layer = hb.Linear(inputs, outputs, bias=bias)
    dense = nn.Linear(inputs, outputs, bias=bias)
    dense.load_state_dict(layer.state_dict())
    layer.mode = "events"
    x = _spikes(rows, inputs, density=density)
    weights = torch.randn(rows, outputs)
    for got, wanted in zip(gradients(layer, x, weights), gradients(dense, x, weights), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert layer.explain().startswith("events")
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.cover(1)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(700, 600, 70), (33, 1100, 16), (300, 130, 300)])
def test_cache_sizes_change_no_bit(rows, inputs, outputs, density, monkeypatch):
    x = _spikes(rows, inputs, density=density)
    bits, _ = pack_bits(x)
    weight, gradient = torch.randn(outputs, inputs), torch.randn(rows, outputs)
    results = []
    for listed, cached, words in ((2, 0, 1), (64, 1 << 17, 3), (product.LISTED, product.DOT_WEIGHTS, 8)):
        monkeypatch.setattr(product, "LISTED", listed)
        monkeypatch.setattr(product, "DOT_WEIGHTS", cached)
        monkeypatch.setattr(product, "DOT_WORDS", words)
        sums, table = (
            product.forward(bits, density, weight, None),
            product.pack_weights(weight, panel(outputs)),
        )
        mask = product.GradientMask(bits, density)
        results.append((sums, product.input_gradient(mask, table, gradient, inputs)))
    for sums, to_input in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(to_input, results[0][1])
    sums, to_input = results[0]
    to_weight = product.weight_gradient(bits, density, gradient, inputs)
    torch.testing.assert_close(sums, x @ weight.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_input, (gradient @ weight) * x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_weight, gradient.T @ x, rtol=1e-4, atol=1e-4)


SURROGATES = [surrogate.Step(), surrogate.Box(), surrogate.Triangle(), surrogate.ATan()]


@pytest.mark.cover(1)
@pytest.mark.parametrize("sigma", SURROGATES, ids=repr)
@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_a_network_has_the_gradients_of_the_dense_one_through_the_reference_loop(sigma, scale):
    net = nn.Sequential(
        nn.Linear(20, 64), hb.IF(1.0, sigma), nn.Linear(64, 64), hb.IF(1.0, sigma), nn.Linear(64, 3)
    )
    sparse = hb.events.adopt(copy.deepcopy(net))
    for inner in sparse:
        if isinstance(inner, hb.Linear):
            inner.mode = "events"
    x = _spikes(6, 4, 20, density=0.3) * 1.0
    with torch.no_grad():
        for n in (net, sparse):
            n[0].weight.mul_(scale)
            n[2].weight.mul_(scale)
    h = x
    for inner in net:
        h = hb.unroll(inner.cell, h, backend="reference")[0] if isinstance(inner, hb.OverTime) else inner(h)
    h.square().sum().backward()
    sparse(x).square().sum().backward()
    for result, expected in zip(sparse.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(result.grad, expected.grad, rtol=1e-3, atol=1e-4)


def _spikes_and_layer():
    current = (0.2 * torch.rand(5, 3, 64)).requires_grad_()
    spikes = hb.IF(0.4)(current)
    layer = hb.Linear(64, 7)
    layer.mode = "events"
    return current, spikes, layer


def test_the_gradient_is_zero_if_the_surrogate_below_ignores_it():
    _, spikes, layer = _spikes_and_layer()
    out = layer(spikes)
    assert out.grad_fn.name() == "_MultiplyBackward"
    grads = []
    out.grad_fn.register_hook(lambda to, of: grads.append(to[0].clone()))
    _loss(out).backward()
    assert (grads[0][spikes.detach() == 0] == 0).all()
    assert (grads[0][spikes.detach() == 1] != 0).any()


_FACTORS = torch.linspace(-1, 1, 5 * 3 * 7).view(5, 3, 7)


def _loss(out):
    """A loss whose gradient differs at each step."""
    return (out * _FACTORS.view(out.shape)).sum()


def _full(layer):
    return _FACTORS @ layer.weight.detach()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_gets_the_full_gradient(flat, when):
    _, spikes, layer = _spikes_and_layer()
    grads = []
    if when == "before":
        spikes.register_hook(grads.append)
    out = layer(spikes.flatten(0, 1) if flat else spikes)
    if when == "after":
        spikes.register_hook(grads.append)
    _loss(out).backward()
    torch.testing.assert_close(grads[0], _full(layer))


def test_a_retained_or_requested_gradient_is_full():
    _, spikes, layer = _spikes_and_layer()
    spikes.retain_grad()
    _loss(layer(spikes)).backward()
    torch.testing.assert_close(spikes.grad, _full(layer))
    current, spikes, layer = _spikes_and_layer()
    spikes_grad, _ = torch.autograd.grad(_loss(layer(spikes)), (spikes, current))
    torch.testing.assert_close(spikes_grad, _full(layer))


@pytest.mark.cover(2)
@pytest.mark.parametrize("steps", [2, 4, 9])
@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.ATan()])
@pytest.mark.parametrize("penalised", [False, True])
def test_constant_output_gradients_equal_torchs(steps, sigma, penalised):
    layer = hb.Linear(64, 7)
    layer.mode = "events"
    currents = (0.4 * torch.rand(steps, 3, 64)).requires_grad_()
    factors = torch.randn(3, 7)
    results = []
    for multiplied in (layer, partial(nn.functional.linear, weight=layer.weight, bias=layer.bias)):
        spikes = hb.IF(0.4, sigma)(currents)
        loss = (multiplied(spikes).mean(0) * factors).sum() + penalised * spikes.mean()
        results.append(torch.autograd.grad(loss, [currents, layer.weight, layer.bias]))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_constant_step_detects_a_difference_at_any_step():
    for step in range(6):
        grad = torch.ones(6, 2, 3)
        assert torch.equal(constant_step(grad), grad[0])
        grad[step, 1, 2] = 2.0
        assert constant_step(grad) is None
    assert constant_step(torch.full((5, 2, 3), torch.nan)) is None
    assert constant_step(torch.ones(2, 3).expand(5, 2, 3)).shape == (2, 3)
    assert constant_step(torch.ones(4, 3)) is None  # rows of one step


def test_a_constant_current_is_one_product():
    layer = hb.Linear(12, 5)
    x = torch.rand(3, 12, requires_grad=True)
    out = layer(x.expand(7, 3, 12))
    assert out.stride(0) == 0
    out.sum().backward()
    torch.testing.assert_close(x.grad, 7 * layer.weight.detach().sum(0).expand(3, 12))


def test_a_constant_current_runs_forward_hooks_once():
    layer = hb.Linear(12, 5)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.rand(3, 12).expand(7, 3, 12))
    assert calls == [1]


def _with_neurons_below(currents, layer, sigma):
    """The output of `layer` above spiking neurons, and the gradients of the currents and its parameters."""
    currents = currents.clone().requires_grad_()
    spikes = hb.IF(1.0, sigma, detach_reset=True)(currents)
    layer.zero_grad()
    out = layer(spikes)
    out.mul(torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [out.detach(), currents.grad, *(p.grad for p in layer.parameters())]


def _pair(dense):
    layer = hb.events.adopt(copy.deepcopy(dense))
    layer.mode = "events"
    return layer, dense


KEEP_SPIKES = [surrogate.Step(), surrogate.Box()]


@pytest.mark.parametrize("sigma", KEEP_SPIKES, ids=repr)
@pytest.mark.parametrize("shape", [(9, 5, 128), (300, 64), (7, 2, 3, 64)], ids=str)
def test_emitted_spikes_are_added_and_their_gradient_restricted(sigma, shape):
    currents = 2 * torch.rand(shape)
    layer, dense = _pair(nn.Linear(shape[-1], 70))
    expected = _with_neurons_below(currents, dense, sigma)
    for result, target in zip(_with_neurons_below(currents, layer, sigma), expected, strict=True):
        torch.testing.assert_close(result, target, rtol=1e-4, atol=1e-4)
    density = hb.IF(1.0, sigma)(currents).mean()
    assert 0.2 < density < 0.9
    assert layer.explain().startswith(f"events: {density:.0%} of the input")


def test_one_weight_used_twice_and_an_input_used_twice():
    layer = hb.Linear(16, 16)
    layer.mode = "events"
    x = _spikes(9, 16, density=0.3).requires_grad_()
    (layer(x).sum() + layer((x > 0).float()).square().sum() + (x * 3).sum()).backward()
    grads = [x.grad, layer.weight.grad, layer.bias.grad]
    y = x.detach().requires_grad_()
    w, b = (p.detach().requires_grad_() for p in (layer.weight, layer.bias))
    f = nn.functional.linear
    (f(y, w, b).sum() + f((y > 0).float(), w, b).square().sum() + (y * 3).sum()).backward()
    for a, c in zip(grads, (y.grad, w.grad, b.grad), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_adopt_keeps_the_parameters_and_checkpoints_move_either_way():
    net = nn.Sequential(nn.Linear(4, 6), hb.IF(), nn.Linear(6, 2))
    before = [id(p) for p in net.parameters()]
    assert [id(p) for p in hb.events.adopt(net).parameters()] == before
    assert type(net[0]) is hb.Linear
    nn.Linear(4, 6).load_state_dict(net[0].state_dict())


def test_an_invalid_mode_is_refused():
    layer = hb.Linear(4, 6)
    layer.mode = "sparse"
    with pytest.raises(ValueError, match=r"mode must be .* got .sparse."):
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("observer", ["leaf", "hook", "retain"])
def test_an_observed_gradient_of_a_constant_current_has_all_steps(wrapped, observer):
    layer = hb.Linear(12, 5)
    layer = hb.EachStep(layer) if wrapped else layer
    source = torch.rand(3, 12)
    x = source.expand(7, 3, 12).requires_grad_()
    grads = []
    if observer != "leaf":
        x = source.requires_grad_().expand(7, 3, 12)
    if observer == "hook":
        x.register_hook(grads.append)
    if observer == "retain":
        x.retain_grad()
    out = layer(x)
    weights = torch.randn(7, 3, 5)
    out.mul(weights).sum().backward()
    (weight,) = (p for p in layer.parameters() if p.ndim == 2)
    torch.testing.assert_close(grads[0] if grads else x.grad, weights @ weight.detach())
