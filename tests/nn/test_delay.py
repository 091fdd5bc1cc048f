"""`hb.Delay` and `hb.DelayedLinear`: their outputs, runs in pieces, and delays learned by interpolation."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hibana as hb


def delayed(x, steps):
    """`x`, ``[T, ...]``, delayed by `steps`, starting with zeros."""
    return torch.cat([torch.zeros_like(x[:steps]), x[: len(x) - steps]]) if steps else x


def test_each_neuron_has_a_separate_delay():
    x = torch.rand(9, 3, 4)
    result = hb.Delay(torch.tensor([0.0, 1.0, 5.0, 8.0]))(x)
    assert torch.equal(result, torch.stack([delayed(x[..., n], d) for n, d in enumerate([0, 1, 5, 8])], -1))
    images = torch.rand(9, 3, 2, 4, 5)
    assert torch.equal(hb.Delay(3)(images), delayed(images, 3))
    by_channel = hb.Delay(torch.tensor([0.0, 2.0])[:, None, None])(images)
    assert torch.equal(by_channel, torch.stack([images[:, :, 0], delayed(images[:, :, 1], 2)], 2))


def test_a_learned_delay_is_interpolated_in_training_and_rounded_in_evaluation():
    layer = hb.Delay(torch.tensor([0.0, 1.25, 2.75]), 4, learn=True, sigma=0.0)
    x = torch.rand(8, 2, 3)
    result = layer(x)
    expected = [x[..., 0], 0.75 * delayed(x[..., 1], 1) + 0.25 * delayed(x[..., 1], 2)]
    expected.append(0.25 * delayed(x[..., 2], 2) + 0.75 * delayed(x[..., 2], 3))
    torch.testing.assert_close(result, torch.stack(expected, -1))
    assert torch.equal(
        layer.eval()(x), torch.stack([x[..., 0], delayed(x[..., 1], 1), delayed(x[..., 2], 3)], -1)
    )
    assert layer.steps.tolist() == [0, 1, 3]


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_every_synapse_has_a_separate_delay(sigma):
    layer = hb.DelayedLinear(3, 4, 6, sigma=sigma)
    x = (torch.rand(10, 40, 3) < 0.3).float()
    lags = torch.arange(7.0)
    distance = lags - layer.delay[..., None]
    kernel = (1 - distance.abs()).clamp(min=0) if sigma == 0 else torch.exp(-(distance**2) / (2 * sigma**2))
    kernel = layer.weight[..., None] * kernel / kernel.sum(-1, keepdim=True)
    for mode in ("events", "dense"):
        layer.mode = mode
        expected = sum(delayed(x, k) @ kernel[..., k].T for k in range(7)) + layer.bias
        torch.testing.assert_close(layer(x), expected)
        assert layer.explain().startswith(mode)
    rounded = sum(delayed(x, k) @ (layer.weight * (layer.steps == k)).T for k in range(7)) + layer.bias
    torch.testing.assert_close(layer.eval()(x), rounded)
    layer.mode = "events"
    with torch.no_grad():
        torch.testing.assert_close(layer(x), rounded)
        assert "one addition per synapse" in layer.explain()
        first, state = layer(x[:4], return_state=True)
        torch.testing.assert_close(torch.cat([first, layer(x[4:], state)]), rounded)


@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(70, 3, True), (64, 130, False), (1, 1, True)])
def test_integer_delays_are_added_spike_by_spike(inputs, outputs, bias):
    layer = hb.DelayedLinear(inputs, outputs, 9, bias).eval()
    layer.mode = "events"
    for density in (0.0, 0.05, 1.0):
        x = (torch.rand(13, 5, inputs) < density).float()
        layer.mode = "dense"
        expected = layer(x)
        layer.mode = "events"
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
            assert "one addition per synapse" in layer.explain()


def gradients(layer, mode, x, training, below=None):
    """Outputs and parameter gradients; with a layer `below`, also the gradient of `x`."""
    layer.mode = mode
    layer.train(training).zero_grad()
    current = x.clone().requires_grad_()
    out = layer(x if below is None else below(current))
    torch.manual_seed(3)
    (out * torch.randn(out.shape)).sum().backward()
    assert layer.explain().startswith(mode)
    assert mode == "dense" or "one addition per synapse" in layer.explain()
    results = [out, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]
    return results if below is None else [*results, current.grad]


@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(70, 3, True), (64, 130, False), (1, 1, True)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_of_fractional_delays_equal_the_dense_ones(inputs, outputs, bias, training):
    torch.manual_seed(0)
    layer = hb.DelayedLinear(inputs, outputs, 9, bias, sigma=0.0)
    with torch.no_grad():
        layer.delay[0, 0] = 9.0  # the maximum
    for density in (0.0, 0.05, 1.0):
        x = (torch.rand(13, 5, inputs) < density).float()
        by_events, by_product = (gradients(layer, mode, x, training) for mode in ("events", "dense"))
        for by_event, dense in zip(by_events, by_product, strict=True):
            torch.testing.assert_close(by_event, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_a_layer_below_equals_the_dense_one(training):
    torch.manual_seed(0)
    layer = hb.DelayedLinear(64, 10, 9, sigma=0.0)
    current = torch.randn(13, 5, 64) * 0.6
    for below in (hb.LIF(surrogate=hb.surrogate.Box(width=0.1)), hb.LIF(surrogate="Step")):
        by_events, densely = (
            gradients(layer, mode, current, training, below) for mode in ("events", "dense")
        )
        assert by_events[-1].any()
        for result, expected in zip(by_events, densely, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_retained_gradient_of_spikes_is_complete():
    torch.manual_seed(0)
    layer = hb.DelayedLinear(64, 10, 9, sigma=0.0)
    neurons = hb.LIF(surrogate=hb.surrogate.Box(width=0.1))
    grads = []
    for layer.mode in ("events", "dense"):
        torch.manual_seed(1)
        spikes = neurons((torch.randn(13, 5, 64) * 0.6).requires_grad_())
        spikes.retain_grad()
        layer(spikes).square().sum().backward()
        assert layer.explain().startswith(layer.mode)
        grads.append(spikes.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@given(cuts=st.lists(st.integers(1, 11), unique=True, max_size=5).map(sorted))
def test_in_pieces_it_is_what_it_is_at_once(cuts):
    torch.manual_seed(1)
    net = nn.Sequential(hb.DelayedLinear(3, 5, 4), hb.LIF(threshold=0.1), hb.Delay(torch.arange(5.0)))
    with torch.no_grad():
        net[0].weight.copy_((net[0].weight * 64).round() / 64)
        net[0].bias.copy_((net[0].bias * 64).round() / 64)
    net, inputs = net.eval(), torch.randint(0, 17, (12, 2, 3)) / 16
    whole, last = hb.run(net, inputs)
    assert torch.equal(whole, net(inputs))
    assert whole.any()
    outputs, state = [], None
    for piece in torch.tensor_split(inputs, cuts):
        output, state = hb.run(net, piece, state)
        outputs.append(output)
    assert torch.equal(torch.cat(outputs), whole)
    assert all(torch.equal(a, b) for name in last for a, b in zip(state[name], last[name], strict=True))


def test_its_gradient_is_that_of_the_interpolation():
    for layer in (hb.Delay(torch.rand(3) * 4, 4, learn=True), hb.DelayedLinear(3, 2, 4)):
        layer.double()
        x = torch.rand(7, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *args, layer=layer: layer(args[0]), (x, *layer.parameters()))


def test_a_delay_beyond_its_range_is_reflected():
    layer = hb.Delay(torch.tensor([1.0, 1.0, 0.0, 4.0]), 4, learn=True, sigma=1.0)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([-0.5, 4.75, 0.0, 4.0]))  # the last two are at their bounds
    assert layer.steps.tolist() == [0, 3, 0, 4]
    torch.manual_seed(0)
    layer(torch.rand(8, 2, 4)).square().sum().backward()
    assert layer.delay.grad.all()


@pytest.mark.parametrize(
    "layer",
    [lambda: hb.Delay(torch.rand(3) * 4, 4, learn=True), lambda: hb.DelayedLinear(3, 2, 9)],
    ids=["Delay", "DelayedLinear"],
)
def test_fixed_delays_are_integers_in_training_too(layer):
    torch.manual_seed(0)
    layer = layer()
    x = (torch.rand(12, 40, 3) < 0.3).float()
    assert not torch.allclose(layer(x), layer.eval()(x))
    hb.fix_delays(nn.Sequential(layer))
    evaluated = layer.eval()(x)
    assert torch.equal(layer.train()(x), evaluated)
    assert torch.equal(layer.delay, layer.steps.to(layer.delay.dtype))
    assert not layer.delay.requires_grad


def test_training_recovers_the_lags():
    torch.manual_seed(0)
    x = (torch.rand(100, 8, 4) < 0.1).float()
    lags = torch.tensor([1, 9, 4, 6])
    expected = torch.stack([delayed(x[..., n], lag) for n, lag in enumerate(lags)], -1)
    layer = hb.Delay(torch.full([4], 5.0), 10, learn=True)
    optimizer = torch.optim.Adam(layer.parameters(), 0.2)
    for step in range(80):
        hb.narrow_delays(layer, step / 79)
        optimizer.zero_grad()
        (layer(x) - expected).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.steps, lags)
    assert torch.equal(layer.eval()(x), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.Delay(-1.0), r"delay must lie in \[0, max_delay\], in steps, got -1.0"),
        (lambda: hb.Delay(3.0, 2), r"delay must lie in \[0, max_delay\], in steps, got 3.0, max_delay=2"),
        (lambda: hb.Delay(1.0, 2, sigma=-1), "sigma must be finite steps, 0 or more, got -1"),
        (
            lambda: hb.DelayedLinear(2, 2, 1.5),
            "max_delay must be a whole number of steps, 0 or more, got 1.5",
        ),
        (lambda: hb.DelayedLinear(0, 2, 1), "in_features must be a whole number of at least 1, got 0"),
        (lambda: hb.Delay(1.0)(torch.rand(3, 2)), r"inputs must be \[T, batch, ...\] .*\(3, 2\)"),
        (
            lambda: hb.DelayedLinear(2, 2, 1)(torch.rand(3, 2, 3)),
            r"inputs must be \[T, batch, 2\].*\(3, 2, 3\)",
        ),
        (lambda: hb.narrow_delays(hb.Delay(1.0), 1.5), r"progress must lie in \[0, 1\], got 1.5"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("longest", "one_by_one"), [(50, True), (2, False)])
def test_long_delays_are_added_one_by_one(longest, one_by_one):
    layer = hb.DelayedLinear(64, 32, longest, sigma=0.0)
    layer((torch.rand(40, 32, 64) < 0.1).float())
    assert ("one addition per synapse" in layer.explain()) == one_by_one


OUTSIDE = [-0.6, -1e9, 9.4, 1e9, torch.inf, -torch.inf, 9.0, 0.0]
"""Delays for a layer with `max_delay` 9: outside of the range, and at its bounds."""


class Identity(nn.Module):
    """A parametrization that changes nothing."""

    def forward(self, value):
        return value * 1.0


def with_delays(layer, how):
    """A function of the input that computes `layer` with equal tensors instead of its parameters."""
    held = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    if how == "functional_call":
        return lambda x: torch.func.functional_call(layer, held, (x,))
    if how == "vmap":
        stacked = {name: tensor[None] for name, tensor in held.items()}
        return lambda x: torch.vmap(lambda each: torch.func.functional_call(layer, each, (x,)))(stacked)[0]
    parametrized = copy.deepcopy(layer)
    nn.utils.parametrize.register_parametrization(parametrized, "delay", Identity())
    return parametrized


@pytest.mark.cover(2)
@pytest.mark.parametrize("how", ["functional_call", "vmap", "parametrization"])
@pytest.mark.parametrize("mode", ["events", "dense"])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_any_tensor_of_delays_is_reflected_into_its_range(how, mode, sigma, training):
    torch.manual_seed(0)
    layer = hb.DelayedLinear(len(OUTSIDE), 5, 9, sigma=sigma).train(training)
    layer.mode = mode
    with torch.no_grad():
        layer.delay[2] = torch.tensor(OUTSIDE)
    x = (torch.rand(13, 4, len(OUTSIDE)) < 0.3).float()
    substituted = with_delays(layer, how)
    with torch.no_grad():
        torch.testing.assert_close(substituted(x), layer(x))
    torch.testing.assert_close(substituted(x), layer(x))


@pytest.mark.parametrize("how", ["functional_call", "vmap", "parametrization"])
@pytest.mark.parametrize("training", [True, False])
def test_any_tensor_of_delays_of_neurons_is_reflected_into_its_range(how, training):
    layer = hb.Delay(torch.full([len(OUTSIDE)], 3.0), 9, learn=True, sigma=0.0).train(training)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor(OUTSIDE))
    x = torch.rand(13, 4, len(OUTSIDE))
    with torch.no_grad():
        torch.testing.assert_close(with_delays(layer, how)(x), layer(x))


@pytest.mark.parametrize("delay", [torch.nan, -0.6, 1e9])
@pytest.mark.parametrize("learn", [True, False])
def test_no_delay_lies_outside_its_range(delay, learn):
    layer = hb.Delay(torch.zeros(2), 9, learn=learn).eval()
    layer.load_state_dict({"delay": torch.tensor([delay, 2.0])})
    assert layer.steps.min() >= 0
    assert layer.steps.max() <= 9
    layer(torch.rand(13, 4, 2))
    synapses = hb.DelayedLinear(2, 3, 9, sigma=0.0)
    synapses.mode = "events"
    with torch.no_grad():
        synapses.delay[0, 0] = delay
    spikes = (torch.rand(13, 4, 2) < 0.5).float()
    for synapses.training in (True, False):
        outputs = synapses(spikes)
        assert "one addition per synapse" in synapses.explain()
        assert outputs[..., 1:].isfinite().all()


def test_a_fixed_layer_stays_fixed_with_substituted_delays():
    layer = hb.DelayedLinear(3, 2, 9)
    hb.fix_delays(layer)
    x = torch.rand(13, 4, 3)
    for how in ("functional_call", "vmap"):
        torch.testing.assert_close(with_delays(layer, how)(x), layer(x))
    parametrized = with_delays(hb.DelayedLinear(3, 2, 9), "parametrization")
    hb.fix_delays(parametrized)
    trained = parametrized.train()(x)
    torch.testing.assert_close(trained, parametrized.eval()(x))
    trained.sum().backward()
    assert parametrized.parametrizations.delay.original.grad is None
