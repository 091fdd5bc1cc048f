"""Convolution and pooling of spikes: torch's outputs and gradients, also with hooks."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from hibana import surrogate
from hibana.spikes.bits import Planes, pack_bits
from hibana.spikes.convolution import pixels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.convolution.product import ConvolutionProduct, windows_of
from hibana.spikes.linear import product
from hibana.spikes.provenance import lookup
from selection import examples
from spikes.test_events import ALWAYS_DENSE, gradients


def _spikes(*shape, density, last=True):
    spikes = (torch.rand(shape) < density).float()
    return spikes.contiguous(memory_format=torch.channels_last) if last else spikes


restriction = lookup
"""Returns where the gradient of a tensor is needed, or None if everywhere."""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@settings(max_examples=examples(24))
@given(
    channels=st.sampled_from([1, 2, 3, 32, 65]),
    outputs=st.sampled_from([1, 5, 16, 33, 64, 70]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    stride=st.sampled_from([1, 1, 2, (2, 1), 3]),
    padding=st.sampled_from([0, 1, (0, 2), "same", "valid"]),
    dilation=st.sampled_from([1, 1, (1, 2), 2]),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
    bias=st.booleans(),
    last=st.booleans(),
    values=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
)
def test_outputs_and_gradients_are_those_of_torch(
    channels, outputs, height, width, kernel, stride, padding, dilation, density, bias, last, values
):
    assume(padding != "same" or stride == 1)
    arguments = (channels, outputs, kernel, stride, padding, dilation)
    dense = nn.Conv2d(*arguments, bias=bias)
    x = _spikes(3, channels, height, width, density=density, last=last)
    try:  # channels last torch 2.13 writes beyond its memory at some sizes, and ends the process at others
        shape = dense(x.contiguous()).shape
    except RuntimeError:  # the window does not fit on the image
        assume(False)
    layer = hb.Conv2d(*arguments, bias=bias)
    layer.load_state_dict(dense.state_dict())
    layer.mode = "events"
    weights = torch.randn(shape) * (torch.rand(shape) < values)  # the gradient of the output
    found, alike = gradients(layer, x, weights), gradients(dense, x.contiguous(), weights)
    for got, wanted in zip(found, alike, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert layer.explain().startswith(("events", *ALWAYS_DENSE))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x.contiguous()), rtol=1e-4, atol=1e-4)


def _network(sigma, channels):
    return nn.Sequential(
        hb.EachStep(nn.Conv2d(2, channels, 3, padding=1)),
        hb.IF(1.0, sigma),
        hb.EachStep(nn.MaxPool2d(2)),
        hb.EachStep(nn.Conv2d(channels, 16, 3, padding=1, dilation=1)),
        hb.IF(1.0, sigma),
        hb.EachStep(nn.MaxPool2d((3, 2))),
        nn.Flatten(2),
        nn.Linear(16 * 2 * 4, 70),
        hb.IF(1.0, sigma),
        nn.Linear(70, 3),
    )


def adopted(net):
    sparse = hb.events.adopt(copy.deepcopy(net))
    for inner in sparse.modules():
        if isinstance(inner, hb.Linear | hb.Conv2d):
            inner.mode = "events"
    return sparse


def referenced(net):
    """A copy of `net` with dense layers whose neurons use the reference loop."""
    dense = copy.deepcopy(net)
    for inner in dense.modules():
        if isinstance(inner, hb.OverTime):
            inner.forward = lambda x, cell=inner.cell: hb.unroll(cell, x, backend="reference")[0]
    return dense


@pytest.mark.cover(2)
@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box(), surrogate.ATan()], ids=repr)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("channels", [5, 16])
def test_a_network_has_the_gradients_of_the_dense_one_through_the_reference_loop(sigma, scale, channels):
    net = _network(sigma, channels)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * scale * 1024).round() / 1024)  # sums are exact in any order
    x = _spikes(4 * 2, 2, 12, 16, density=0.3, last=False).view(4, 2, 2, 12, 16)
    sparse, dense = adopted(net), referenced(net)
    weights = torch.randn(4, 2, 3)
    for each in (sparse, dense):
        each(x).mul(weights).sum().backward()
    assert torch.equal(sparse(x), dense(x))
    for result, expected in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(result.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_the_spiking_layer_is_known_through_pooling_and_flattening():
    net = adopted(_network(surrogate.Step(), 16))
    x = _spikes(4 * 2, 2, 12, 16, density=0.3, last=False).view(4, 2, 2, 12, 16)
    restricted = []
    for layer in net:
        x = layer(x)
        restricted.append(x.requires_grad and restriction(x) is not None)
    assert restricted == [False, True, True, False, True, True, True, False, True, False]


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box()], ids=repr)
def test_the_gradient_of_a_convolutions_input_is_computed_on_the_support_only(sigma):
    currents = torch.rand(4, 3, 9, 8, 16).mul(0.5).permute(0, 1, 4, 2, 3)
    cell, layer = hb.IFCell(1.0, sigma, detach_reset=True), hb.Conv2d(16, 8, 3, padding=1)
    layer.mode = "events"
    spikes = hb.OverTime(cell)(currents.requires_grad_())
    received = []
    spikes.grad_fn.register_prehook(lambda grads: received.append(grads[0]))  # changes no gradient
    out = hb.EachStep(layer)(spikes)
    weights = torch.rand_like(out) + 1
    out.backward(weights)
    dense = torch.nn.grad.conv2d_input(spikes.shape[1:], layer.weight, weights[0], padding=1)
    assert layer.explain().startswith("events")
    inside = sigma.derivative(hb.record(cell, currents)["v"] - 1) != 0
    assert 0 < inside.float().mean() < 0.8
    assert not received[0][~inside].any()
    torch.testing.assert_close(received[0][0][inside[0]], dense[inside[0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flat", [False, True], ids=["each step", "a view"])
def test_a_users_view_gets_the_full_gradient_and_each_step_does_not(flat):
    currents = torch.rand(4, 3, 30, 16).movedim(-1, 2).requires_grad_()  # [T, batch, channels, length]
    spikes, layer = hb.IF(detach_reset=True)(currents), hb.events.Conv1d(16, 8, 3)
    layer.mode = "events"
    received = []
    spikes.grad_fn.register_prehook(lambda grads: received.append(grads[0]))
    out = layer(spikes.flatten(0, 1)) if flat else hb.EachStep(layer)(spikes)
    out.sum().backward()
    assert layer.explain().startswith("events")
    silent = spikes.detach() == 0
    assert 0.1 < silent.float().mean() < 0.9
    assert received[0][silent].any() == flat


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("observer", ["retain", "hook", "forward hook"])
def test_an_observed_gradient_below_is_full(index, observer):
    net = _network(surrogate.Step(), 16)
    observed = []

    def observe(module, args, out):
        if observer == "retain":
            out.retain_grad()
            observed.append(out)
        else:
            out.register_hook(lambda g: observed.append(g.clone()))

    grads = []
    for each in (adopted(net), copy.deepcopy(net)):
        observed.clear()
        x = _spikes(4 * 2, 2, 12, 16, density=0.3, last=False).view(4, 2, 2, 12, 16)
        torch.manual_seed(1)
        x = (torch.rand(x.shape) < 0.3).float()
        if observer == "forward hook":
            each[index].register_forward_hook(observe)
            out = each(x)
        else:
            middle = each[: index + 1](x)
            observe(None, None, middle)
            out = each[index + 1 :](middle)
        out.sum().backward()
        (gradient,) = observed
        grads.append(gradient.grad if observer == "retain" else gradient)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.cover(2)
@pytest.mark.parametrize("window", [2, 3, (1, 2), (4, 3)])
@pytest.mark.parametrize("channels", [1, 16, 33])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_max_pooling_of_spikes_equals_torchs_bit_for_bit(window, channels, density):
    x = _spikes(5, channels, 9, 8, density=density)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    pooled, expected = hb.events.MaxPool2d(window)(ours), nn.MaxPool2d(window)(theirs)
    weights = torch.randn(expected.shape)
    pooled.mul(weights).sum().backward()
    expected.mul(weights).sum().backward()
    assert torch.equal(pooled, expected)
    assert torch.equal(ours.grad, theirs.grad)


def _layer_and_pooling(currents, pooling):
    """The pooled spikes of a layer for all steps, and the gradient of the layer's input."""
    currents = currents.detach().clone().requires_grad_()
    spikes = hb.IF(detach_reset=True)(currents)
    pooled = hb.EachStep(pooling)(spikes)
    torch.manual_seed(1)
    pooled.mul(torch.randn(pooled.shape)).sum().backward()
    return pooled.detach(), currents.grad


@pytest.mark.parametrize("window", [2, 3, (1, 2), (4, 3), (2, 5)])
@pytest.mark.parametrize("channels", [16, 48, 5])
def test_packed_spikes_are_pooled_from_their_bits(window, channels):
    currents = torch.rand(4, 3, channels, 9, 8).mul(1.5).permute(0, 1, 3, 4, 2).contiguous()
    currents = currents.permute(0, 1, 4, 2, 3)  # channels last
    expected, pooling = _layer_and_pooling(currents, nn.MaxPool2d(window)), hb.events.MaxPool2d(window)
    for result, target in zip(_layer_and_pooling(currents, pooling), expected, strict=True):
        assert torch.equal(result, target)
    by_bits = channels % 16 == 0 and window != (2, 5)
    assert pooling.explain().startswith("events: " if by_bits else "torch's: ")


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box()], ids=repr)
@pytest.mark.parametrize("write", [None, "in place", "spikes"])
def test_the_gradient_of_pooled_spikes_is_restricted_to_the_spikes(sigma, write):
    currents = torch.rand(4, 3, 8, 8, 16).mul(1.5).permute(0, 1, 4, 2, 3).requires_grad_()
    spikes = hb.IF(1.0, sigma, detach_reset=True)(currents)
    if write == "spikes":
        spikes.data[1, 2, 3, 4, 5] = 1 - spikes.data[1, 2, 3, 4, 5]
    pooled = hb.EachStep(hb.events.MaxPool2d(2))(spikes)
    if write == "in place":
        pooled[:, 0].mul_(1.0)
    restricted = restriction(pooled)
    if write is None and isinstance(sigma, surrogate.Step):
        rows = pooled.detach().movedim(2, -1).reshape(-1, 64)
        assert torch.equal(restricted.mask.view(torch.int64), pack_bits(rows)[0])
    else:
        assert restricted is None


@pytest.mark.parametrize("sigma", [surrogate.Step(), surrogate.Box()], ids=repr)
@pytest.mark.parametrize("last", [True, False])
def test_a_convolution_of_the_spikes_of_a_layer(sigma, last):
    currents = torch.rand(4, 3, 16, 9, 8).mul(1.5)
    if last:
        currents = currents.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    dense = nn.Conv2d(16, 8, 3, padding=1)
    layer = hb.events.adopt(copy.deepcopy(dense))
    layer.mode = "events"
    results = []
    for conv in (layer, dense):
        x = currents.detach().requires_grad_()
        out = conv(hb.IF(1.0, sigma, detach_reset=True)(x).flatten(0, 1))
        out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in conv.parameters())])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)
    assert layer.explain().startswith("events")


@pytest.mark.parametrize("value", [0.5, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_pooling_of_other_values_is_torchs(value, place):
    x = _spikes(2, 17, 4, 4, density=0.5)
    x[place, place, place, place] = value
    assert torch.equal(hb.events.MaxPool2d(2)(x).nan_to_num(), nn.MaxPool2d(2)(x).nan_to_num())


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
    ],
    ids=repr,
)
def test_other_poolings_are_torchs(layer):
    x = _spikes(2, 4, 7, 7, density=0.5)
    expected, result = layer(x), hb.events.adopt(copy.deepcopy(layer))(x)
    for one, other in zip(*((w,) if torch.is_tensor(w) else w for w in (expected, result)), strict=True):
        assert torch.equal(one, other)


def test_groups_are_computed_densely_and_explained():
    layer = hb.Conv2d(2, 4, 3, groups=2)
    layer.mode = "events"
    x = _spikes(3, 2, 9, 9, density=0.3)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    assert layer.explain() == "dense: groups"


@pytest.mark.cover(1)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
        {"padding": (0, 2), "padding_mode": "replicate", "dilation": 2},
        {"padding": "same", "padding_mode": "circular", "kernel_size": (2, 5)},
        {"padding": "same", "kernel_size": 2},
        {"padding": "same", "kernel_size": (4, 3), "dilation": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_other_paddings_equal_torchs(arguments, dimensions):
    options = {
        name: value[-1] if dimensions == 1 and isinstance(value, tuple) else value
        for name, value in {"kernel_size": 3, **arguments}.items()
    }
    kind, torch_kind = (hb.events.Conv1d, nn.Conv1d) if dimensions == 1 else (hb.Conv2d, nn.Conv2d)
    layer, dense = kind(5, 8, **options), torch_kind(5, 8, **options)
    layer.load_state_dict(dense.state_dict())
    layer.mode = "events"
    x = _spikes(3, 5, 9, 8, density=0.3)
    x = x[:, :, 0] if dimensions == 1 else x
    weights = torch.randn(dense(x).shape)
    results, dense_results = gradients(layer, x, weights), gradients(dense, x.contiguous(), weights)
    for result, expected in zip(results, dense_results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert layer.explain().startswith(("events", *ALWAYS_DENSE))


def test_values_other_than_spikes_are_convolved_by_torch():
    layer = hb.Conv2d(2, 4, 3)
    layer.mode = "events"
    x = torch.rand(3, 2, 9, 9)
    last = x.contiguous(memory_format=torch.channels_last)  # torch's rounding depends on the format
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, last))
    assert layer.explain() == "dense: the input is neither spikes nor small whole numbers"
    with pytest.raises(RuntimeError, match="2 channels"):
        layer(torch.rand(3, 1, 9, 9))


def test_a_constant_picture_is_convolved_once_in_training_too():
    layer = hb.EachStep(hb.Conv2d(1, 4, 3))
    calls = []
    layer.module.register_forward_hook(lambda *_: calls.append(_[2].shape))
    picture = torch.rand(2, 1, 6, 6, requires_grad=True)
    out = layer(picture.expand(7, 2, 1, 6, 6))
    assert calls == [(2, 4, 4, 4)]
    assert out.stride(0) == 0
    out.sum().backward()
    grad, picture.grad = picture.grad, None
    torch.stack([nn.Conv2d.forward(layer.module, picture) for _ in range(7)]).sum().backward()
    torch.testing.assert_close(grad, picture.grad)


def test_a_constant_picture_is_normalized_once():
    once = hb.EachStep(nn.Sequential(hb.Conv2d(1, 4, 3), nn.BatchNorm2d(4))).double()  # its sums cancel
    each = hb.EachStep(copy.deepcopy(once.module))
    picture = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    results = []
    for layer, x in ((once, picture.expand(7, 2, 1, 6, 6)), (each, picture.repeat(7, 1, 1, 1, 1))):
        out = layer(x)
        (out * torch.linspace(0, 1, 7 * 2 * 4 * 16, dtype=torch.float64).view(7, 2, 4, 4, 4)).sum().backward()
        norm = layer.module[1]
        assert norm.num_batches_tracked == 1
        results.append([out, norm.running_mean, *(p.grad for p in layer.parameters())])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)
    assert results[0][0].stride(0) == 0
    # the running variance counts a picture once, not once for each of its copies
    samples = 2 * 4 * 4
    initial, once_var, copies_var = 0.9, once.module[1].running_var, each.module[1].running_var
    factor = (samples / (samples - 1)) / (7 * samples / (7 * samples - 1))
    torch.testing.assert_close(once_var - initial, (copies_var - initial) * factor)


def test_a_single_constant_picture_is_normalized_with_its_copies():
    layer = hb.EachStep(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
    assert layer(torch.rand(1, 2, 2).expand(7, 1, 2, 2)).count_nonzero() == 0  # torch refuses a single one


def test_the_output_of_a_dense_convolution_is_channels_last():
    layer = hb.Conv2d(1, 16, 3)
    out = layer(torch.rand(2, 1, 6, 6))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not out.is_contiguous()


@pytest.mark.cover(1)
@pytest.mark.parametrize(
    ("channels", "outputs", "image", "kernel", "padding", "dilation"),
    [
        (64, 70, (33, 40), (3, 3), (1, 1), (1, 1)),  # tiles of 3 rows by 20 pixels, and a rest
        (3, 5, (7, 9), (3, 3), (1, 1), (1, 1)),  # less than one tile
        (70, 130, (5, 65), (5, 3), (2, 0), (1, 2)),
        (65, 33, (12, 11), (3, 3), (0, 2), (2, 1)),  # vertical dilation: one row at a time
        (5, 7, (30, 1), (3, 1), (2, 0), (3, 1)),
        (16, 16, (6, 70), (3, 7), (4, 5), (2, 3)),
        (130, 20, (12, 11), (1, 1), (0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_the_restricted_gradient_is_correct_on_the_support_and_zero_elsewhere(
    channels, outputs, image, kernel, padding, dilation, density
):
    torch.manual_seed(0)
    geometry = Geometry(channels, image, kernel, (1, 1), padding, dilation)
    weight, support = torch.randn(outputs, channels, *kernel), torch.rand(2, *image, channels) < density
    grad = torch.randn(2, *geometry.output, outputs)
    expected = torch.nn.grad.conv2d_input(
        (2, channels, *image), weight, grad.permute(0, 3, 1, 2), 1, padding, dilation
    )
    expected = torch.where(support.permute(0, 3, 1, 2), expected, 0)
    bits, _ = pack_bits(support.float().view(2 * image[0], -1))
    convolution = ConvolutionProduct(expected.shape, weight, geometry)
    mask = product.GradientMask(bits, density)
    result = convolution.input_gradient(mask, weight, grad.view(-1, outputs))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item() + 1e-30)
    assert not result[expected == 0].any()


@pytest.mark.cover(1)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "image", "padding"),
    [
        (64, 16, (1, 3), (1, 1100), (0, 1)),  # a row of pixels has more channels than 16 bits count
        (64, 16, (1, 3), (1, 1024), (0, 1)),  # exactly as many
        (2000, 8, (3, 3), (3, 40), (1, 1)),
        (1, 70_000, (1, 1), (2, 3), (0, 0)),  # a pixel has more outputs
        (70_000, 4, (1, 1), (2, 3), (0, 0)),
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_more_channels_than_a_list_can_index(channels, outputs, kernel, image, padding, share):
    layer = hb.Conv2d(channels, outputs, kernel, padding=padding)
    x = _spikes(2, channels, *image, density=0.05)
    layer.mode = "events"
    weights = torch.rand(layer(x).shape)
    weights *= weights < share
    results = gradients(layer, x, weights)
    assert layer.explain().startswith("events")
    layer.mode = "dense"
    for result, expected in zip(results, gradients(layer, x, weights), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=examples(30))
@given(
    images=st.integers(1, 5),
    channels=st.sampled_from([1, 8, 33, 64, 70]),
    outputs=st.sampled_from([1, 16, 33, 70]),
    image=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_a_gradient_on_the_support_is_right_at_every_size(
    images, channels, outputs, image, kernel, padding, dilation, density
):
    geometry = Geometry(channels, image, kernel, (1, 1), padding, dilation)
    assume(min(geometry.output) > 0)
    torch.manual_seed(0)
    weight, support = torch.randn(outputs, channels, *kernel), torch.rand(images, *image, channels) < density
    grad = torch.randn(images, *geometry.output, outputs)
    x = torch.zeros(images, channels, *image, dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.conv2d(x, weight.double(), None, 1, padding, dilation)
    (wanted,) = torch.autograd.grad(out, x, grad.permute(0, 3, 1, 2).double())
    wanted = torch.where(support.permute(0, 3, 1, 2), wanted, 0).float()
    bits, _ = pack_bits(support.float().view(images * image[0], -1))
    convolution = ConvolutionProduct(x.shape, weight, geometry)
    mask = product.GradientMask(bits, density)
    got = convolution.input_gradient(mask, weight, grad.view(-1, outputs))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not got[wanted == 0].any()


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_both_ways_to_list_spikes_agree(density, monkeypatch):
    from hibana.spikes.simd import rows

    layers = hb.Conv2d(3, 20, 3, padding=1), hb.Conv2d(33, 20, 3, padding=1), hb.Linear(130, 70)
    inputs = [_spikes(2, channels, 9, 9, density=density) for channels in (3, 33)]
    inputs.append(_spikes(70, 130, density=density, last=False))
    results = []
    for compresses in (rows.compresses(), False):
        monkeypatch.setattr(rows, "compresses", lambda value=compresses: value)
        for layer, x in zip(layers, inputs, strict=True):
            layer.mode = "events"
            out = layer(x)
            weights = torch.linspace(-1, 1, out.numel()).view_as(out)
            results.append(gradients(layer, x, weights * (weights.abs() < 0.2)))
    for first, second in zip(results[:3], results[3:], strict=True):
        for result, expected in zip(first, second, strict=True):
            torch.testing.assert_close(result, expected)


def test_binary_outputs_of_a_linear_layer_are_not_treated_as_spikes():
    spikes = hb.IF()(torch.rand(4, 3, 64, requires_grad=True))
    layer, above = hb.Linear(64, 64, bias=False), hb.Linear(64, 8)
    layer.mode = above.mode = "events"
    with torch.no_grad():
        layer.weight.copy_(torch.eye(64))
    middle = layer(spikes)  # not spikes, though all 0 and 1
    assert restriction(middle) is None
    above(middle).sum().backward()
    torch.testing.assert_close(
        layer.weight.grad, above.weight.detach().sum(0)[:, None] * spikes.detach().sum((0, 1))
    )


def test_fx_traces_through_every_layer():
    net = hb.events.adopt(nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)))
    x = _spikes(3, 2, 6, 6, density=0.3)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))
    net = nn.Sequential(*net[:2], hb.events.Flatten(1), hb.Linear(16, 3))
    assert torch.equal(hb.fold_batchnorm(net)(x), net(x))


@settings(max_examples=examples(12))
@given(
    channels=st.sampled_from([1, 3, 64]),
    outputs=st.sampled_from([1, 17, 70]),
    length=st.integers(5, 12),
    kernel=st.integers(1, 5),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 2, "valid"]),
    dilation=st.sampled_from([1, 1, 2]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_convolution_of_one_dimension_is_torchs(
    channels, outputs, length, kernel, stride, padding, dilation, density
):
    assume(dilation * (kernel - 1) < length)
    arguments = (channels, outputs, kernel, stride, padding, dilation)
    layer, dense = hb.events.Conv1d(*arguments), nn.Conv1d(*arguments)
    layer.load_state_dict(dense.state_dict())
    layer.mode = "events"
    x = (torch.rand(3, channels, length) < density).float()
    weights = torch.randn(dense(x).shape)
    found, alike = gradients(layer, x, weights), gradients(dense, x.contiguous(), weights)
    for got, wanted in zip(found, alike, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert layer.explain().startswith(("events", *ALWAYS_DENSE))


def test_a_convolution_of_one_dimension_runs_other_inputs_by_torch():
    layer = hb.events.Conv1d(2, 4, 3)
    layer.mode = "events"
    for x in (torch.rand(3, 2, 9), torch.ones(2, 9)):
        assert torch.equal(layer(x), nn.Conv1d.forward(layer, x))
        assert layer.explain().startswith("dense: ")
    with pytest.raises(RuntimeError, match="channels"):
        layer(torch.ones(3, 5, 9))


def test_a_network_of_one_dimension_has_the_gradients_of_the_dense_one():
    net = nn.Sequential(
        hb.EachStep(nn.Conv1d(3, 64, 3, padding=1)),
        hb.IF(0.5, detach_reset=True),
        hb.EachStep(nn.Conv1d(64, 8, 5, padding=2)),
    )
    x = torch.rand(4, 2, 3, 12)
    weights = torch.randn(4, 2, 8, 12)
    grads = []
    for each in (adopted(net), net):
        for inner in each.modules():
            if isinstance(inner, hb.events.Conv1d):
                inner.mode = "events"
        each(x).mul(weights).sum().backward()
        grads.append([p.grad for p in each.parameters()])
    for result, expected in zip(*grads, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


BY_TORCH = [
    (nn.Conv3d(2, 3, 3), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(2, 3, 3, stride=2), (1, 2, 4, 4)),
    (nn.AvgPool2d(2), (1, 2, 4, 4)),
    (nn.AdaptiveAvgPool2d(1), (1, 2, 4, 4)),
    (nn.AdaptiveMaxPool2d(2), (1, 2, 4, 4)),
    (nn.Upsample(scale_factor=2), (1, 2, 4, 4)),
    (nn.MaxPool2d(2), (1, 2, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), BY_TORCH, ids=lambda value: type(value).__name__)
def test_layers_computed_by_torch_are_explained(layer, shape):
    x = (torch.rand(shape) < 0.5).float()
    adopted = hb.events.adopt(copy.deepcopy(layer))
    assert torch.equal(adopted(x), layer(x))
    assert adopted.explain().startswith("torch's: ")
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(adopted))(x), layer(x))


@pytest.mark.cover(2)
@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("width", "kernel", "stride", "padding", "dilation"),
    [
        (1, (3, 1), 2, (1, 1), 2),
        (2, (3, 1), 3, (1, 1), 3),
        (1, (3, 2), 2, (1, 3), 2),
        (1, (3, 2), 1, (1, 2), (1, 4)),
    ],
)
def test_windows_in_the_padding_alone_give_the_bias(width, kernel, stride, padding, dilation, last, mode):
    layer = hb.Conv2d(2, 16, kernel, stride, padding, dilation).to(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    layer.mode = mode
    x = _spikes(3, 2, 8, width, density=0.5, last=last).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert torch.equal(out, layer.bias.detach()[:, None, None].expand_as(out))
    assert not x.grad.any()
    assert not layer.weight.grad.any()
    assert torch.equal(layer.bias.grad, torch.full([16], out.numel() / 16))


@settings(max_examples=examples(30))
@given(
    images=st.integers(1, 11),
    channels=st.sampled_from([1, 8, 31, 32, 33, 64, 65, 130]),
    outputs=st.sampled_from([1, 16, 33, 70]),
    image=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    planes=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    near=st.sampled_from([16, 1000, pixels.CACHED_FLOATS]),
    lies=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    threads=st.integers(1, 3),
)
def test_what_is_listed_by_pixels_gives_what_windows_give(
    images, channels, outputs, image, kernel, stride, padding, dilation, planes, density, near, lies, threads
):
    geometry = Geometry(channels, image, kernel, stride, padding, dilation)
    assume(min(geometry.output) > 0)
    rows = torch.rand(planes, images * image[0], image[1] * channels) < density
    input_ = Planes(torch.stack([pack_bits(plane.float())[0] for plane in rows]), density)
    weight, bias = torch.randn(outputs, channels, *kernel).to(memory_format=lies), torch.randn(outputs)
    gradient = torch.randn(images * geometry.output[0] * geometry.output[1], outputs)
    inputs = channels * kernel[0] * kernel[1]
    windows = windows_of(input_.bits, geometry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(pixels, "PIXELS", near)
        patch.setattr(pixels, "CACHED_FLOATS", near)
        patch.setattr(product, "PART_ROWS", 1)  # parts of the rows, where there are as many images
        found = pixels.forward(input_, weight, bias, geometry)
        of_weights = pixels.weight_gradient(input_, gradient, geometry) if stride == (1, 1) else None
        patch.setattr(product, "PART_ROWS", 1 << 40)
        flat = product.weight_gradient(windows, 0.1, gradient, inputs, input_.scales)
    flat = flat.view(outputs, *kernel, channels).permute(0, 3, 1, 2)
    if of_weights is not None:
        torch.testing.assert_close(of_weights, flat, rtol=1e-4, atol=1e-4)
    wanted = product.forward(
        windows, 0.1, weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias, input_.scales
    )
    wanted = wanted.view(images, *geometry.output, outputs).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    if channels <= 64:  # the same order of sums
        assert torch.equal(found, wanted)


@pytest.mark.cover(1)
@pytest.mark.parametrize(
    ("images", "channels", "outputs", "image", "kernel", "padding", "dilation", "planes"),
    [
        (11, 40, 70, (4, 5), (3, 3), (1, 1), (1, 1), 1),
        (7, 65, 64, (2, 2), (3, 3), (1, 1), (1, 1), 2),
        (70, 64, 16, (3, 3), (2, 3), (1, 2), (2, 1), 1),
        (3, 48, 33, (30, 20), (3, 3), (1, 1), (1, 1), 1),  # one image exceeds a batch
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_batched_images_have_bit_equal_sums(
    images, channels, outputs, image, kernel, padding, dilation, planes, threads, monkeypatch
):
    geometry = Geometry(channels, image, kernel, (1, 1), padding, dilation)
    numbers = torch.rand(planes, images * image[0], image[1] * channels) < 0.2
    input_ = Planes(torch.stack([pack_bits(plane.float())[0] for plane in numbers]), 0.2)
    weight, bias = torch.randn(outputs, channels, *kernel), torch.randn(outputs)
    expected = pixels.forward(input_, weight, bias, geometry)
    monkeypatch.setattr(pixels, "BEYOND_L2", 0)
    count = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(pixels.forward(input_, weight, bias, geometry), expected)
    finally:
        torch.set_num_threads(count)


def test_too_long_rows_of_pixels_are_not_listed():
    geometry = [Geometry(32, (3, width), (1, 3), (1, 1), (0, 1), (1, 1)) for width in (2048, 2049)]
    assert [pixels.is_pixelwise(each, 24, 0.1) for each in geometry] == [True, False]


def test_a_padding_set_between_calls_is_used():
    layer = hb.Conv2d(16, 4, 2, dilation=4, padding=4)
    x = torch.rand(2, 16, 1, 1).to(memory_format=torch.channels_last)
    layer(x)  # a window covers the image
    layer.padding = (2, 2)
    torch.testing.assert_close(layer(x), layer.bias.view(1, -1, 1, 1).expand(2, 4, 1, 1))
    assert layer.explain() == "dense: no window covers the image"
