"""Weights, biases and inputs of any stride, size, dtype and device: torch's numbers, or torch's error."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb

ROWS = 300


def _spikes(*shape):
    return (torch.rand(shape) < 0.2).float()


def _strided(tensor):
    """The same numbers, every other one in memory."""
    room = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    room[..., ::2] = tensor
    return room[..., ::2]


def _negated(tensor):
    """The same numbers, by a view that negates them when they are read."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


def _turned(tensor):
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


WEIGHTS = {
    "as it is": lambda w: w,
    "strided": _strided,
    "turned": _turned,
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
    "none of it": lambda b: b[:0],
    "a matrix": lambda b: b[None],
    "a column": lambda b: b[:, None],
    "for each row": lambda b: torch.randn(ROWS, len(b)),
    "double": lambda b: b.double(),
    "elsewhere": lambda b: b.to("meta"),
}


def _outcome(layer, x, given):
    """What comes out and every gradient, or the error."""
    x = x.detach().requires_grad_()
    given = {name: None if t is None else t.detach().requires_grad_() for name, t in given.items()}
    try:
        out = torch.func.functional_call(layer, {k: v for k, v in given.items() if v is not None}, (x,))
        out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    except (RuntimeError, NotImplementedError, IndexError) as error:  # torch has all of these
        return str(error).split("\n")[0]
    return [out.detach(), x.grad, *(t.grad for t in given.values() if t is not None)]


def _compare(layer, dense, x, given):
    if given["bias"] is None:
        layer, dense = copy.deepcopy(layer), copy.deepcopy(dense)
        layer.bias = dense.bias = None
    got, wanted = _outcome(layer, x, given), _outcome(dense, x, given)
    if isinstance(wanted, str) or isinstance(got, str):
        assert got == wanted
        return
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.cover(2)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mode", ["auto", "events"])
def test_parameters_of_a_linear_layer(weight, bias, mode):
    dense, layer = nn.Linear(64, 48), hb.Linear(64, 48)
    layer.mode = mode
    given = {"weight": WEIGHTS[weight](torch.randn(48, 64)), "bias": BIASES[bias](torch.randn(48))}
    _compare(layer, dense, _spikes(ROWS, 64), given)


@pytest.mark.cover(1)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("bias", [name for name in BIASES if name != "for each row"])
def test_parameters_of_a_convolution(weight, bias):
    dense, layer = nn.Conv2d(8, 12, 3, padding=1), hb.Conv2d(8, 12, 3, padding=1)
    layer.mode = "events"
    given = {"weight": WEIGHTS[weight](torch.randn(12, 8, 3, 3)), "bias": BIASES[bias](torch.randn(12))}
    _compare(layer, dense, _spikes(3, 8, 9, 9), given)


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
def test_parameters_of_layers_that_look_back(make, name, kind, learns):
    changes = WEIGHTS if name == "weight" else BIASES
    if kind not in changes:
        pytest.skip(f"no such {name}")
    layer = make()
    given = {key: value.detach() for key, value in layer.named_parameters()}
    given[name] = changes[kind](given[name])
    x = _spikes(9, 6, 8)
    found = []
    for layer.mode in ("events", "dense"):
        held = {key: None if t is None else t.detach().requires_grad_(learns) for key, t in given.items()}
        if held["bias"] is None:
            layer.bias = None
        try:
            out = torch.func.functional_call(layer, {k: t for k, t in held.items() if t is not None}, (x,))
            if out.requires_grad and out.numel():
                out.mul(torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            found.append([out.detach(), *(t.grad for t in held.values() if t is not None)])
        except (RuntimeError, NotImplementedError, IndexError) as error:
            found.append(type(error))
    if isinstance(found[1], type) or isinstance(found[0], type):
        assert found[0] == found[1]
        return
    for one, other in zip(*found, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1, 1), (5, 2), (9, 9), (12, 3)])
def test_a_convolutions_weight_has_the_say_about_its_kernel(kernel):
    dense, layer = nn.Conv2d(8, 12, 3, padding=1), hb.Conv2d(8, 12, 3, padding=1)
    layer.mode = "events"
    given = {"weight": torch.randn(12, 8, *kernel), "bias": torch.randn(12)}
    _compare(layer, dense, _spikes(3, 8, 9, 9), given)


def test_a_convolutions_weight_may_lie_channels_last():
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
def test_sizes_of_a_convolution_that_were_set_later(changed):
    dense, layer = nn.Conv2d(8, 12, 3), hb.Conv2d(8, 12, 3)
    layer.mode = "events"
    for each in (dense, layer):
        for name, value in changed.items():
            setattr(each, name, value)
    given = {"weight": torch.randn(12, 8, 3, 3), "bias": torch.randn(12)}
    _compare(layer, dense, _spikes(3, 8, 9, 9), given)


@pytest.mark.parametrize(
    "changed", [{"stride": None}, {"stride": 1}, {"kernel_size": (3,)}, {"padding": 1}], ids=repr
)
def test_sizes_of_a_pooling_that_were_set_later(changed):
    dense, layer = nn.MaxPool2d(2), hb.events.MaxPool2d(2)
    for each in (dense, layer):
        for name, value in changed.items():
            setattr(each, name, value)
    x = _spikes(3, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x), dense(x))


INPUTS = {
    "strided": _strided,
    "turned": _turned,
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
        found = []
        for each in (layer, dense):
            each.zero_grad()
            given = x.detach().requires_grad_(learns and x.is_floating_point())
            try:
                out = each(given)
                if out.requires_grad:
                    out.mul(
                        torch.linspace(-1, 1, out.numel()).to(out.device).view(out.shape)
                    ).sum().backward()
                grads = [given.grad, *(p.grad for p in each.parameters())]
                found.append([out.detach(), *(g for g in grads if g is not None)])
            except (RuntimeError, NotImplementedError, TypeError) as error:
                found.append(str(error).split("\n")[0])
        got, wanted = found
        if isinstance(got, str) or isinstance(wanted, str):
            assert got == wanted
            continue
        for one, other in zip(got, wanted, strict=True):
            if one.device.type == "meta":
                assert one.shape == other.shape
                continue
            if one.layout != torch.strided:
                one, other = one.to_dense(), other.to_dense()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("make", [lambda g: torch._neg_view(-g), _strided, lambda g: g[:1].expand_as(g)])
def test_gradients_of_any_layout_that_come_from_above(make):
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
        found = []
        grad = make(torch.randn(dense(x).shape))
        for each in (layer, dense):
            given = x.detach().requires_grad_()
            each(given).backward(grad)
            found.append([given.grad, *(p.grad for p in each.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
