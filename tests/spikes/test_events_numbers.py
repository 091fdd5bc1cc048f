"""Small integers are events: sums of spikes, averages, dropout; and the layers below a sum are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from hibana import surrogate
from selection import examples
from spikes.test_events import ALWAYS_DENSE, gradients
from spikes.test_events_convolution import adopted, referenced, restriction


def _numbers(*shape, density, most, factor=1.0):
    """Zeros, and `factor` times integers from 1 to `most`."""
    numbers = torch.randint(1, most + 1, shape) * (torch.rand(shape) < density) * factor
    numbers.view(-1)[0] = factor  # the layer derives it from the smallest number of a sample
    return numbers


def _assert_alike(layer, dense, x):
    layer.load_state_dict(dense.state_dict())
    layer.mode = "events"
    weights = torch.randn(dense(x).shape)
    for result, expected in zip(gradients(layer, x, weights), gradients(dense, x, weights), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=3e-4)
    assert layer.explain().startswith(("events", *ALWAYS_DENSE))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=3e-4)


NUMBERS = {
    "density": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    "most": st.sampled_from([1, 2, 3, 5, 15]),
    "factor": st.sampled_from([1.0, 0.25, 1 / 0.7, 3.0]),
}


@settings(max_examples=examples(12))
@given(
    rows=st.sampled_from([1, 70, 300]),
    inputs=st.sampled_from([1, 63, 64, 130]),
    outputs=st.sampled_from([1, 17, 70]),
    **NUMBERS,
)
def test_a_linear_layer_of_whole_numbers_is_torchs(rows, inputs, outputs, density, most, factor):
    x = _numbers(rows, inputs, density=density, most=most, factor=factor)
    _assert_alike(hb.Linear(inputs, outputs), nn.Linear(inputs, outputs), x)


@settings(max_examples=examples(12))
@given(
    channels=st.sampled_from([1, 3, 32, 65]),
    outputs=st.sampled_from([5, 33]),
    kernel=st.sampled_from([1, 3, (2, 5)]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, (0, 2)]),
    **NUMBERS,
)
def test_a_convolution_of_whole_numbers_is_torchs(
    channels, outputs, kernel, stride, padding, density, most, factor
):
    x = _numbers(3, channels, 6, 7, density=density, most=most, factor=factor)
    arguments = (channels, outputs, kernel, stride, padding)
    _assert_alike(hb.Conv2d(*arguments), nn.Conv2d(*arguments), x)


@pytest.mark.parametrize("value", [-1.0, 16.0, 0.4, 1e30, -0.25, 2**24 + 2, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 4094])
def test_one_other_number_makes_the_product_dense(value, place):
    x = _numbers(300, 70, density=0.3, most=3)
    x.view(-1)[place] = value
    layer = hb.Linear(70, 5)
    layer.mode = "events"
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x).nan_to_num(), expected.nan_to_num())
    assert layer.explain() == "dense: the input is neither spikes nor small whole numbers"


def test_a_factor_missing_in_the_sample_is_detected():
    x = torch.full((300, 71), 2.0)
    x[1, 1], x[0, 2] = 3.0, 0.0
    layer = hb.Linear(71, 5)
    layer.mode = "events"
    layer(x)
    assert layer.explain().startswith("events: whole numbers to 3,")


def test_explain_names_the_range_and_the_factor():
    layer = hb.Linear(64, 5)
    layer.mode = "events"
    layer(_numbers(300, 64, density=0.5, most=3, factor=0.25))
    assert layer.explain().startswith("events: whole numbers to 3 times 0.25, ")


class _Residual(nn.Module):
    """SEW-ResNet's block, with `add` for its sum."""

    def __init__(self, add, layer, sigma):
        super().__init__()
        self.add, self.layer = add, layer
        self.neuron = hb.IF(1.0, sigma, detach_reset=True)

    def forward(self, x):
        return self.add(self.neuron(self.layer(x)), x)


def _network(sigma, add, channels):
    def conv():
        return hb.EachStep(nn.Conv2d(channels, channels, 3, padding=1))

    return nn.Sequential(
        hb.EachStep(nn.Conv2d(2, channels, 3, padding=1)),
        hb.IF(1.0, sigma, detach_reset=True),
        _Residual(add, conv(), sigma),
        _Residual(add, conv(), sigma),
        nn.Flatten(2),
        nn.Linear(channels * 30, 3),
    )


SIGMAS = [surrogate.Step(), surrogate.Box(), surrogate.ATan()]


@pytest.mark.cover(2)
@pytest.mark.parametrize("sigma", SIGMAS, ids=repr)
@pytest.mark.parametrize("channels", [5, 64])
@pytest.mark.parametrize("add", [torch.add, hb.events.add])
def test_a_residual_network_has_the_gradients_of_the_dense_one(sigma, channels, add):
    net = _network(sigma, add, channels)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * 4096).round() / 1024)  # sums are exact in any order
    x = _numbers(4, 2, 2, 5, 6, density=0.3, most=1)
    weights = torch.randn(4, 2, 3)
    sparse, dense = adopted(net), referenced(net)
    for each in (sparse, dense):
        each(x).mul(weights).sum().backward()
    assert torch.equal(sparse(x), dense(x))
    for result, target in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert target.grad.count_nonzero()
        torch.testing.assert_close(result.grad, target.grad, rtol=1e-3, atol=1e-3 * target.grad.abs().max())


def _two_layers(sigma=None, shape=(5, 3, 64)):
    sigma = sigma or surrogate.Step()
    currents = [(0.4 * torch.rand(shape)).requires_grad_() for _ in range(2)]
    spikes = [hb.IF(0.5, sigma, detach_reset=True)(current) for current in currents]
    layer = hb.Linear(shape[-1], 7)
    layer.mode = "events"
    return currents, spikes, layer


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box(0.2)], ids=repr)
@pytest.mark.parametrize("neurons", [64, 60])
def test_the_gradient_of_a_sum_is_computed_where_either_layer_can_use_it(sigma, neurons):
    currents, spikes, layer = _two_layers(sigma, (5, 1, neurons))
    total = hb.events.add(*spikes)
    received = []
    total.grad_fn.register_prehook(lambda grads: received.append(grads[0]))
    factors = torch.randn(5, 1, 7)  # a gradient that differs at each step
    (layer(total) * factors).sum().backward()
    cell = hb.IFCell(0.5, sigma, detach_reset=True)
    inside = sum(sigma.derivative(hb.record(cell, x.detach())["v"] - 0.5) for x in currents) != 0
    assert 0.1 < inside.float().mean() < 0.95
    expected = factors @ layer.weight.detach()
    assert not received[0][~inside].any()
    torch.testing.assert_close(received[0][inside], expected[inside])


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("observer", ["hook", "later hook", "retain", "asked for"])
def test_an_observed_gradient_of_a_sum_or_summand_is_full(index, observer):
    _, spikes, layer = _two_layers()
    grads = []
    total = hb.events.add(*spikes)
    observed = [*spikes, total][index]
    if observer == "hook":
        observed.register_hook(grads.append)
    if observer == "retain":
        observed.retain_grad()
    out = layer(total)
    if observer == "later hook":
        observed.register_hook(grads.append)
    factors = torch.randn(5, 3, 7)
    loss = (out * factors).sum()
    if observer == "asked for":
        grads += torch.autograd.grad(loss, observed)
    else:
        loss.backward()
    result = observed.grad if observer == "retain" else grads[0]
    torch.testing.assert_close(result, factors @ layer.weight.detach())


def test_a_summand_without_a_gradient_does_not_widen_the_support():
    _, (spikes, _), layer = _two_layers()
    constant = (torch.rand(5, 3, 64) < 0.5).float()
    for total in (hb.events.add(spikes, constant), hb.events.add(constant, spikes)):
        below = restriction(total)
        assert below is not None
        assert torch.equal(below.mask, restriction(spikes).mask)
    assert restriction(hb.events.add(constant, constant)) is None
    assert layer(total).shape == (5, 3, 7)


def test_sums_with_other_tensors_have_no_restriction():
    _, (spikes, _), _ = _two_layers()
    other = torch.rand(5, 3, 64, requires_grad=True)
    assert restriction(hb.events.add(spikes, other * 2)) is None
    assert restriction(hb.events.add(spikes, other.transpose(0, 1).reshape(5, 3, 64))) is None
    assert restriction(hb.events.add(spikes[:, :1], spikes)) is None
    assert restriction(spikes + spikes) is None


@pytest.mark.parametrize("channels", [16, 5])
def test_sums_of_pooled_spikes_have_a_restriction(channels):
    currents = torch.rand(4, 3, 8, 8, channels).mul(1.5).permute(0, 1, 4, 2, 3).requires_grad_()
    pooled = [
        hb.EachStep(hb.events.MaxPool2d(2))(hb.IF(threshold, detach_reset=True)(currents))
        for threshold in (1.0, 1.2)
    ]
    total = hb.events.add(*pooled)
    assert (restriction(total) is not None) == (channels == 16)
    conv = hb.Conv2d(channels, 4, 3)
    conv.mode = "events"
    conv(total.flatten(0, 1)).sum().backward()
    grad, currents.grad = currents.grad, None
    dense = sum(
        hb.EachStep(nn.MaxPool2d(2))(hb.IF(threshold, detach_reset=True)(currents))
        for threshold in (1.0, 1.2)
    )
    nn.functional.conv2d(dense.flatten(0, 1), conv.weight, conv.bias).sum().backward()
    torch.testing.assert_close(grad, currents.grad, rtol=1e-4, atol=1e-4)


WRITES = {
    "a part": lambda total: total[1:].mul_(0.0),
    "a view": lambda total: total.flatten(0, 1)[::3].zero_(),
    "detached": lambda total: total.detach().mul_(total.detach() > 1),
    "by data": lambda total: total.data.add_(1.0),
    "by numpy": lambda total: total.detach().numpy().__imul__(2),
    "a new memory": lambda total: setattr(total, "data", total.data * 0.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("shape", [(5, 3, 64), (6, 2, 40)])
def test_a_sum_that_is_written_to_keeps_the_gradients_of_autograd(write, shape):
    results = []
    for add in (hb.events.add, torch.add):
        torch.manual_seed(0)
        currents, spikes, layer = _two_layers(shape=shape)
        total = add(*spikes)
        before = total.detach().clone()
        with torch.no_grad():
            WRITES[write](total)
        assert not torch.equal(before, total)
        layer(total).square().sum().backward()
        results.append([total.detach(), *(x.grad for x in currents), layer.weight.grad])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [0, 1, 3, 4, 2]])
@pytest.mark.parametrize("shape", [(3, 2, 8, 4, 4), (2, 3, 5, 3, 3)])
def test_sums_of_sums_have_the_gradients_of_all_summands(order, shape):
    back = [order.index(dimension) for dimension in range(5)]
    currents = [
        torch.rand(shape).permute(order).contiguous().permute(back).requires_grad_() for _ in range(17)
    ]
    spikes = [hb.IF(0.4 + 0.02 * i)(x) for i, x in enumerate(currents)]
    total, expected = spikes[0], spikes[0].detach()
    for each in spikes[1:]:
        total, expected = hb.events.add(total, each), expected + each.detach()
        assert torch.equal(total, expected)
        assert total.stride() == spikes[0].stride()
        assert restriction(total) is not None
    total.square().sum().backward()
    surrogates = [
        torch.autograd.grad(hb.IF(0.4 + 0.02 * i)(x).mul(2 * expected).sum(), x)[0]
        for i, x in enumerate(currents)
    ]
    for x, gradient in zip(currents, surrogates, strict=True):
        torch.testing.assert_close(x.grad, gradient)


def test_spikes_added_to_themselves_are_twice_as_many():
    currents = torch.rand(3, 2, 64, requires_grad=True)
    spikes = hb.IF(0.5)(currents)
    twice = hb.events.add(spikes, spikes)
    four = hb.events.add(twice, twice)
    assert torch.equal(four, 4 * spikes)
    (result,) = torch.autograd.grad(four.sum(), currents, retain_graph=True)
    (expected,) = torch.autograd.grad((4 * spikes).sum(), currents)
    torch.testing.assert_close(result, expected)


def test_average_pooled_spikes_and_dropout_are_events():
    spikes = _numbers(8, 16, 12, 12, density=0.2, most=1)
    layer = hb.Conv2d(16, 8, 3)
    layer.mode = "events"
    for x in (nn.AvgPool2d(2)(spikes), nn.Dropout(0.3)(spikes), torch.cat([spikes, spikes], 2)):
        out = layer(x)
        assert layer.explain().startswith("events")
        expected = nn.functional.conv2d(x, layer.weight, layer.bias)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
