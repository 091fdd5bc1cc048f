"""``weight.data = ...`` between forward and backward: torch's gradients, or one error."""

import pytest
import torch
from torch import nn

import hibana as hb

BOX = hb.surrogate.Box()


def twins(name, transposed=False):
    """A layer of hibana, the layer of torch with the same parameters, and an input for both."""
    torch.manual_seed(0)
    if "Linear" in name:
        layer, twin, x = hb.Linear(256, 64), nn.Linear(256, 64), torch.rand(8, 40, 256)
    elif "Conv1d" in name:
        layer, twin, x = hb.events.Conv1d(8, 16, 3), nn.Conv1d(8, 16, 3), torch.rand(20, 8, 30)
    else:
        layer, twin, x = hb.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), torch.rand(20, 8, 12, 12)
    if transposed:
        layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    twin.load_state_dict(layer.state_dict())
    layer.mode = "dense" if "dense" in name else "events"
    return layer, twin, x


# torch saves a view of a linear layer's weight, but the weight of a convolution itself
KINDS = [
    f"{layer} {how}" for layer in ("Linear", "Conv1d", "Conv2d") for how in ("dense", "events", "above IF")
]


@pytest.mark.cover(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("changed_twice", [False, True])
def test_the_input_gradient_uses_the_same_weight_as_torch(kind, transposed, changed_twice):
    layer, twin, x = twins(kind, transposed)
    x = (x < 0.2).float() if "events" in kind else x
    grads = []
    for each in (layer, twin):
        leaf = x.clone().requires_grad_()
        below = hb.IF(0.6, BOX)(leaf) if "above" in kind else leaf
        out = each(below)
        for k in range(1 + changed_twice):
            each.weight.data = each.weight.data * (2.0 - k)
        out.square().sum().backward()
        grads.append((leaf.grad, each.weight.grad, each.bias.grad))
    assert kind.split()[1] != "events" or layer.explain().startswith("events")
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if "Conv" in k and "dense" not in k])
@pytest.mark.parametrize("change", ["smaller", "double"])
def test_a_weight_of_another_kind_is_refused(kind, change):
    layer, _, x = twins(kind)
    leaf = x.requires_grad_() if "above" in kind else (x < 0.2).float().requires_grad_()
    out = layer(hb.IF(0.6, BOX)(leaf) if "above" in kind else leaf)
    new = layer.weight.data
    layer.weight.data = new[:1].clone() if change == "smaller" else new.double()
    with pytest.raises(RuntimeError, match="must keep their shape and dtype"):
        out.sum().backward()


@pytest.mark.parametrize("mode", ["dense", "events"])
@pytest.mark.parametrize("make", [lambda: hb.Window(8, 16, 3), lambda: hb.DelayedLinear(8, 16, 4, sigma=0.0)])
def test_layers_over_time_use_the_weight_of_their_forward(mode, make):
    torch.manual_seed(0)
    layer = make()
    layer.mode = mode
    x, grads = torch.rand(20, 8, 8), []
    for change in (False, True):
        leaf = x.clone().requires_grad_()
        out = layer(hb.IF(0.6, BOX)(leaf))
        if change:
            layer.weight.data = layer.weight.data * 2
        out.sum().backward()
        grads.append(leaf.grad)
    assert layer.explain().startswith(mode)
    assert grads[0].any()
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("surrogate", [BOX, hb.surrogate.ATan()])
def test_neurons_use_the_tensors_of_their_forward(surrogate):
    """In the backward they read the input again if that costs less than saving values derived from it."""
    x = torch.rand(8, 300_000)
    x = x[:, None]
    grads = []
    for change in (False, True):
        leaf = x.clone().requires_grad_()
        tau = nn.Parameter(torch.tensor(3.0))
        out = hb.LIF(tau, surrogate=surrogate)(leaf)
        if change:
            leaf.data = leaf.data.flip(-1)
            tau.data = torch.tensor(5.0)
        out.square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
