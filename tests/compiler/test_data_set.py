"""``weight.data = ...`` between forward and backward: torch's gradients, or one error."""

import pytest
import torch
from torch import nn

import hibana as hb

box = hb.surrogate.Box()


def twins(name, turned=False):
    """A layer of hibana, torch's, and an input of both."""
    torch.manual_seed(0)
    if "Linear" in name:
        layer, twin, x = hb.Linear(256, 64), nn.Linear(256, 64), torch.rand(8, 40, 256)
    elif "Conv1d" in name:
        layer, twin, x = hb.events.Conv1d(8, 16, 3), nn.Conv1d(8, 16, 3), torch.rand(20, 8, 30)
    else:
        layer, twin, x = hb.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), torch.rand(20, 8, 12, 12)
    if turned:
        layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    twin.load_state_dict(layer.state_dict())
    layer.mode = "dense" if "dense" in name else "events"
    return layer, twin, x


# of a linear layer torch keeps a view, of what the forward read; of a convolution the weight itself
KINDS = [
    f"{layer} {how}" for layer in ("Linear", "Conv1d", "Conv2d") for how in ("dense", "events", "above IF")
]


@pytest.mark.cover(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_the_gradient_of_the_input_is_of_the_weight_that_torch_takes(kind, turned, twice):
    layer, twin, x = twins(kind, turned)
    x = (x < 0.2).float() if "events" in kind else x
    found = []
    for each in (layer, twin):
        given = x.clone().requires_grad_()
        below = hb.IF(0.6, box)(given) if "above" in kind else given
        out = each(below)
        for k in range(1 + twice):
            each.weight.data = each.weight.data * (2.0 - k)
        out.square().sum().backward()
        found.append((given.grad, each.weight.grad, each.bias.grad))
    assert kind.split()[1] != "events" or layer.explain().startswith("events")
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if "Conv" in k and "dense" not in k])
@pytest.mark.parametrize("change", ["smaller", "double"])
def test_a_weight_of_another_kind_is_refused(kind, change):
    layer, _, x = twins(kind)
    given = x.requires_grad_() if "above" in kind else (x < 0.2).float().requires_grad_()
    out = layer(hb.IF(0.6, box)(given) if "above" in kind else given)
    new = layer.weight.data
    layer.weight.data = new[:1].clone() if change == "smaller" else new.double()
    with pytest.raises(RuntimeError, match="must keep their shape and dtype"):
        out.sum().backward()


@pytest.mark.parametrize("mode", ["dense", "events"])
@pytest.mark.parametrize("make", [lambda: hb.Window(8, 16, 3), lambda: hb.DelayedLinear(8, 16, 4, sigma=0.0)])
def test_layers_that_look_back_keep_the_weight_that_their_forward_read(mode, make):
    torch.manual_seed(0)
    layer = make()
    layer.mode = mode
    x, found = torch.rand(20, 8, 8), []
    for change in (False, True):
        given = x.clone().requires_grad_()
        out = layer(hb.IF(0.6, box)(given))
        if change:
            layer.weight.data = layer.weight.data * 2
        out.sum().backward()
        found.append(given.grad)
    assert layer.explain().startswith(mode)
    assert found[0].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("surrogate", [box, hb.surrogate.ATan()])
def test_neurons_keep_what_their_forward_read(surrogate):
    """They read the sequence again where that costs less than to keep what is made of it."""
    x = torch.rand(8, 300_000)
    x = x[:, None]
    found = []
    for change in (False, True):
        given = x.clone().requires_grad_()
        tau = nn.Parameter(torch.tensor(3.0))
        out = hb.LIF(tau, surrogate=surrogate)(given)
        if change:
            given.data = given.data.flip(-1)
            tau.data = torch.tensor(5.0)
        out.square().sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)
