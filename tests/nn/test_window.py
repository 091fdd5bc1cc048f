"""`hb.Window` against torch's convolution, padded on the left: in pieces, on spikes, in networks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import hibana as hb
from hibana import surrogate
from hibana.train.firing_rates import scale_to_rate
from selection import examples


def written(layer, x):
    """The outputs by torch's convolution: ``[T, batch, channels] -> [T, batch, outputs]``."""
    reach = (layer.kernel_size - 1) * layer.dilation
    padded = functional.pad(x.permute(1, 2, 0), (reach, 0))
    out = functional.conv1d(padded, layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)
    return out.permute(2, 0, 1)


def results(function, layer, x, weights):
    x = x.clone().requires_grad_()
    out = function(x)
    grads = torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])
    return [out.detach(), *grads]


@settings(max_examples=examples(20))
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 32, 65]),
    outputs=st.sampled_from([1, 6, 64, 70]),
    size=st.integers(1, 4),
    dilation=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    bias=st.booleans(),
    values=st.sampled_from([0.0, 0.2, 1.0]),
    mode=st.sampled_from(["events", "dense"]),
)
def test_it_is_torchs_convolution_padded_on_the_left(
    steps, batch, channels, outputs, size, dilation, density, bias, values, mode
):
    layer = hb.Window(channels, outputs, size, dilation, bias=bias)
    layer.mode = mode
    x = (torch.rand(steps, batch, channels) < density).float()
    weights = torch.randn(steps, batch, outputs) * (torch.rand(steps, batch, outputs) < values)
    found = results(layer, layer, x, weights)
    wanted = results(lambda x: written(layer, x), layer, x, weights)
    assert layer.explain().startswith(mode)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_and_depthwise_convolutions_equal_torchs(groups, dtype):
    layer = hb.Window(6, 12, 3, 2, groups=groups).to(dtype)
    x, weights = torch.randn(9, 40, 6, dtype=dtype), torch.randn(9, 40, 12, dtype=dtype)
    result = results(layer, layer, x, weights)
    for one, other in zip(result, results(lambda x: written(layer, x), layer, x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert layer.explain().startswith("dense")


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_convolved_pixel_by_pixel(channels_last):
    layer = hb.Window(4, 5, 3)
    layer.mode = "events"
    neurons = hb.IF()
    x = 2 * torch.rand(7, 3, 4, 6, 8)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    outputs = layer(neurons(x))
    assert layer.explain().startswith("events")
    flat = neurons(x).movedim(2, -1).reshape(7, 3 * 6 * 8, 4)
    expected = written(layer, flat).view(7, 3, 6, 8, 5).movedim(-1, 2)
    torch.testing.assert_close(outputs, expected)
    weights = torch.randn(7, 3, 5, 6, 8)
    grads = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (outputs, expected)]
    torch.testing.assert_close(*grads)
    x.grad = None
    (layer(neurons(x)) * weights).sum().backward()
    torch.testing.assert_close(x.grad, grads[1])


def network():
    """A network with weights of few bits, so that sums are exact in any order."""
    net = nn.Sequential(
        hb.Window(3, 8, 3),
        hb.LIF(threshold=0.3),
        hb.Window(8, 8, 4, dilation=2, groups=8),
        hb.LIF(threshold=0.2),
        hb.Window(8, 2, 1),
        hb.LI(),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return net


@given(cuts=st.lists(st.integers(1, 11), unique=True, max_size=5).map(sorted))
def test_in_pieces_it_is_what_it_is_at_once(cuts):
    torch.manual_seed(1)
    net, inputs = network(), torch.randint(0, 17, (12, 2, 3)) / 16
    whole, last = hb.run(net, inputs)
    assert torch.equal(whole, net(inputs))
    outputs, state = [], None
    for piece in torch.tensor_split(inputs, cuts):
        output, state = hb.run(net, piece, state)
        outputs.append(output)
    assert torch.equal(torch.cat(outputs), whole)
    assert all(torch.equal(a, b) for name in last for a, b in zip(state[name], last[name], strict=True))


def test_many_spikes_in_pieces_are_added_one_by_one():
    layer = hb.Window(20, 8, 3)
    layer.mode = "events"
    x = (torch.rand(30, 50, 20) < 0.1).float()
    first, state = hb.run(layer, x[:12])
    second, _ = hb.run(layer, x[12:], state)
    assert layer.explain().startswith("events")
    torch.testing.assert_close(torch.cat([first, second]), written(layer, x))


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box(), surrogate.ATan()], ids=repr)
def test_skipped_gradients_change_no_parameter_gradient(sigma):
    net = nn.Sequential(
        nn.Linear(5, 64), hb.IF(1.0, sigma), hb.Window(64, 32, 3), hb.IF(1.0, sigma), nn.Linear(32, 2)
    )
    dense = copy.deepcopy(net)
    net[2].mode, dense[2].mode = "events", "dense"
    x = 3 * torch.rand(20, 16, 5)
    for each in (net, dense):
        each(x).square().sum().backward()
    assert net[2].explain().startswith("events")
    for one, other in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_its_weights_are_scaled_to_a_rate():
    net = nn.Sequential(hb.Window(5, 50, 4), hb.LIF(), hb.Window(50, 50, 4), hb.LIF())
    rates = scale_to_rate(net, torch.rand(20, 30, 5), 0.1)
    assert rates.keys() == {"1", "3"}
    assert all(abs(rate - 0.1) < 0.02 for rate in rates.values())


def test_batch_normalisation_is_folded_into_it():
    net = nn.Sequential(hb.Window(3, 6, 4, bias=False), hb.EachStep(nn.BatchNorm1d(6)), hb.LIF())
    x = torch.rand(9, 5, 3)
    net(x)
    folded = hb.fold_batchnorm(net)
    assert isinstance(folded[1], hb.EachStep)
    assert isinstance(folded[1].module, nn.Identity)
    torch.testing.assert_close(folded[0](x), net[:2].eval()(x))


@pytest.mark.dynamo
def test_it_is_compiled_with_its_network():
    net, x = network(), torch.rand(12, 2, 3)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.Window(3, 4, 0), "kernel_size must be a whole number of at least 1, got 0"),
        (lambda: hb.Window(3, 4, 2, dilation=1.5), "dilation must be a whole number of at least 1, got 1.5"),
        (lambda: hb.Window(3, 4, 2, groups=3), "groups must divide in_channels and out_channels, got 3"),
        (
            lambda: hb.Window(3, 4, 2)(torch.rand(5, 2, 4)),
            r"inputs must be \[T, batch, 3, ...\].*\(5, 2, 4\)",
        ),
        (lambda: hb.Window(3, 4, 2)(torch.rand(5, 3)), r"inputs must be \[T, batch, 3, ...\].*\(5, 3\)"),
        (
            lambda: hb.Window(3, 4, 2)(torch.rand(5, 2, 3), (torch.rand(2, 2, 3),)),
            r"state must be one tensor of the last steps, \(1, 2, 3\), got \[\(2, 2, 3\)\]",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
