"""Weights, biases and inputs of any stride, size, dtype and device: torch's results, or torch's error."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb

ROWS = 300


def _spikes(*shape):
    return (torch.rand(shape) < 0.2).float()


def _strided(tensor):
    """A copy of `tensor` whose last dimension has stride 2."""
    room = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    room[..., ::2] = tensor
    return room[..., ::2]


def _negated(tensor):
    """A view equal to `tensor` whose memory holds its negation."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


def _transposed(tensor):
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


WEIGHTS = {
    "as it is": lambda w: w,
    "strided": _strided,
    "turned": _transposed,
    "expanded": lambda w: w[:1].expand_as(w),
    "negated": _negated,
    "offset": lambda w: torch.cat([w.flatten()[:3], w.flatten()])[3:].view(w.shape),
    "too narrow": lambda w: w[:, :-2].contiguous(),
    "of fewer outputs": lambda w: w[:-3].contiguous(),
    "no inputs": lambda w: w[:, :0],
    "no outputs": lambda w: w[:0],
    "one dimension": lambda w: w[0].flatten(),
    "one dimension more": lambda w: w[None],
    "double": lambda w: w.double(),
    "half": lambda w: w.half(),
    "elsewhere": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
}
BIASES = {
    "as it is": lambda b: b,
    "none": lambda b: None,
    "strided": _strided,
    "reversed": lambda b: _strided(b.flip(0)).flip(0),
    "negated": _negated,
    "expanded": lambda b: b[:1].expand_as(b),
    "one": lambda b: b[:1],
    "scalar": lambda b: b[0],
    "too short": lambda b: b[:-1],
    "too long": lambda b: torch.cat([b, b]),
    "empty": lambda b: b[:0],
    "a matrix": lambda b: b[None],
    "a column": lambda b: b[:, None],
    "for each row": lambda b: torch.randn(ROWS, len(b)),
    "double": lambda b: b.double(),
    "elsewhere": lambda b: b.to("meta"),
}


def _results(layer, x, tensors):
    """The output and every gradient, or the first line of the error."""
    x = x.detach().requires_grad_()
    tensors = {name: None if t is None else t.detach().requires_grad_() for name, t in tensors.items()}
    try:
        out = torch.func.functional_call(layer, {k: v for k, v in tensors.items() if v is not None}, (x,))
        out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    except (RuntimeError, NotImplementedError, IndexError) as error:  # torch raises each of these
        return str(error).split("\n")[0]
    return [out.detach(), x.grad, *(t.grad for t in tensors.values() if t is not None)]


def _compare(layer, dense, x, tensors):
    if tensors["bias"] is None:
        layer, dense = copy.deepcopy(layer), copy.deepcopy(dense)
        layer.bias = dense.bias = None
    result, expected = _results(layer, x, tensors), _results(dense, x, tensors)
    if isinstance(expected, str) or isinstance(result, str):
        assert result == expected
        return
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.cover(2)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mode", ["auto", "events"])
def test_parameters_of_a_linear_layer(weight, bias, mode):
    dense, layer = nn.Linear(64, 48), hb.Linear(64, 48)
    layer.mode = mode
    tensors = {"weight": WEIGHTS[weight](torch.randn(48, 64)), "bias": BIASES[bias](torch.randn(48))}
    _compare(layer, dense, _spikes(ROWS, 64), tensors)


@pytest.mark.cover(1)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("bias", [name for name in BIASES if name != "for each row"])
def test_parameters_of_a_convolution(weight, bias):
    dense, layer = nn.Conv2d(8, 12, 3, padding=1), hb.Conv2d(8, 12, 3, padding=1)
    layer.mode = "events"
    tensors = {"weight": WEIGHTS[weight](torch.randn(12, 8, 3, 3)), "bias": BIASES[bias](torch.randn(12))}
    _compare(layer, dense, _spikes(3, 8, 9, 9), tensors)


@pytest.mark.cover(2)
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("kind", sorted({*WEIGHTS, *BIASES} - {"for each row", "elsewhere"}))
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: hb.Window(8, 12, 3),
        lambda: hb.DelayedLinear(8, 12, 4, sigma=0.0),
        lambda: hb.DelayedLinear(8, 12, 4).eval(),
    ],
    ids=["window", "between two steps", "whole steps"],
)
def test_parameters_of_layers_over_time(make, name, kind, learns):
    changes = WEIGHTS if name == "weight" else BIASES
    if kind not in changes:
        pytest.skip(f"no such {name}")
    layer = make()
    tensors = {key: value.detach() for key, value in layer.named_parameters()}
    tensors[name] = changes[kind](tensors[name])
    x = _spikes(9, 6, 8)
    results = []
    for layer.mode in ("events", "dense"):
        leaves = {key: None if t is None else t.detach().requires_grad_(learns) for key, t in tensors.items()}
        if leaves["bias"] is None:
            layer.bias = None
        try:
            out = torch.func.functional_call(layer, {k: t for k, t in leaves.items() if t is not None}, (x,))
            if out.requires_grad and out.numel():
                out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            results.append([out.detach(), *(t.grad for t in leaves.values() if t is not None)])
        except (RuntimeError, NotImplementedError, IndexError) as error:
            results.append(type(error))
    if isinstance(results[1], type) or isinstance(results[0], type):
        assert results[0] == results[1]
        return
    for one, other in zip(*results, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1, 1), (5, 2), (9, 9), (12, 3)])
def test_the_weight_of_a_convolution_defines_the_kernel_size(kernel):
    dense, layer = nn.Conv2d(8, 12, 3, padding=1), hb.Conv2d(8, 12, 3, padding=1)
    layer.mode = "events"
    tensors = {"weight": torch.randn(12, 8, *kernel), "bias": torch.randn(12)}
    _compare(layer, dense, _spikes(3, 8, 9, 9), tensors)


def test_the_weight_of_a_convolution_may_be_channels_last():
    dense, layer = nn.Conv2d(8, 12, 3, padding=1), hb.Conv2d(8, 12, 3, padding=1)
    layer.mode = "events"
    weight = torch.randn(12, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    _compare(layer, dense, _spikes(3, 8, 9, 9), {"weight": weight, "bias": torch.randn(12)})


@pytest.mark.parametrize(
    "changed",
    [
        {"stride": (0, 1)},
        {"stride": (-1, 1)},
        {"dilation": (0, 1)},
        {"dilation": (1, -2)},
        {"padding": (-1, 0)},
        {"stride": (2, 2), "padding": "same"},
        {"stride": (2,)},
        {"padding": (2,)},
        {"stride": (1, 1, 1)},
        {"groups": 2},
        {"groups": 0},
    ],
    ids=repr,
)
def test_changed_sizes_of_a_convolution_are_used(changed):
    dense, layer = nn.Conv2d(8, 12, 3), hb.Conv2d(8, 12, 3)
    layer.mode = "events"
    for each in (dense, layer):
        for name, value in changed.items():
            setattr(each, name, value)
    tensors = {"weight": torch.randn(12, 8, 3, 3), "bias": torch.randn(12)}
    _compare(layer, dense, _spikes(3, 8, 9, 9), tensors)


@pytest.mark.parametrize(
    "changed", [{"stride": None}, {"stride": 1}, {"kernel_size": (3,)}, {"padding": 1}], ids=repr
)
def test_changed_sizes_of_a_pooling_are_used(changed):
    dense, layer = nn.MaxPool2d(2), hb.events.MaxPool2d(2)
    for each in (dense, layer):
        for name, value in changed.items():
            setattr(each, name, value)
    x = _spikes(3, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x), dense(x))


INPUTS = {
    "strided": _strided,
    "turned": _transposed,
    "negated": lambda x: torch._neg_view(-x),
    "expanded": lambda x: x[:, :1].expand_as(x),
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "overlapping": lambda x: x.flatten()[: x.numel() // 2].as_strided(x.shape, (1,) * x.ndim),
    "minus zero": lambda x: torch.where(x == 0, -0.0, 1.0),
    "denormal": lambda x: x * 1e-40,
    "NaN": lambda x: torch.where(x == 0, torch.nan, 1.0),
    "infinite": lambda x: torch.where(x == 0, torch.inf, 1.0),
    "almost one": lambda x: x * (1 + 2**-23),
    "of no rows": lambda x: x[:0],
    "too narrow": lambda x: x[..., :-1],
    "double": lambda x: x.double(),
    "bool": lambda x: x.bool(),
    "elsewhere": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
}


@pytest.mark.cover(2)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_inputs_of_every_layer(kind, last, learns):
    images = _spikes(3, 8, 10, 10)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    pairs = [
        (hb.Linear(64, 48), nn.Linear(64, 48), _spikes(ROWS, 64)),
        (hb.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 3), images),
        (hb.events.MaxPool2d(2), nn.MaxPool2d(2), images),
        (hb.events.Flatten(), nn.Flatten(), images),
    ]
    for layer, dense, x in pairs:
        dense.load_state_dict(layer.state_dict())
        if hasattr(layer, "mode"):
            layer.mode = "events"
        x = INPUTS[kind](x)
        results = []
        for each in (layer, dense):
            each.zero_grad()
            leaf = x.detach().requires_grad_(learns and x.is_floating_point())
            try:
                out = each(leaf)
                if out.requires_grad:
                    out.mul(
                        torch.linspace(-1, 1, out.numel()).to(out.device).view(out.shape)
                    ).sum().backward()
                grads = [leaf.grad, *(p.grad for p in each.parameters())]
                results.append([out.detach(), *(g for g in grads if g is not None)])
            except (RuntimeError, NotImplementedError, TypeError) as error:
                results.append(str(error).split("\n")[0])
        result, expected = results
        if isinstance(result, str) or isinstance(expected, str):
            assert result == expected
            continue
        for one, other in zip(result, expected, strict=True):
            if one.device.type == "meta":
                assert one.shape == other.shape
                continue
            if one.layout != torch.strided:
                one, other = one.to_dense(), other.to_dense()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("make", [lambda g: torch._neg_view(-g), _strided, lambda g: g[:1].expand_as(g)])
def test_output_gradients_of_any_layout(make):
    images = _spikes(3, 8, 10, 10).contiguous(memory_format=torch.channels_last)
    pairs = [
        (hb.Linear(64, 48), nn.Linear(64, 48), _spikes(ROWS, 64)),
        (hb.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 3), images),
        (hb.Conv2d(8, 12, 3, 2), nn.Conv2d(8, 12, 3, 2), images),
        (hb.events.MaxPool2d(2), nn.MaxPool2d(2), images),
    ]
    for layer, dense, x in pairs:
        dense.load_state_dict(layer.state_dict())
        if hasattr(layer, "mode"):
            layer.mode = "events"
        results = []
        grad = make(torch.randn(dense(x).shape))
        for each in (layer, dense):
            leaf = x.detach().requires_grad_()
            each(leaf).backward(grad)
            results.append([leaf.grad, *(p.grad for p in each.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
