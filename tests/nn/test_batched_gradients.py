"""Gradients of a batch at once (``is_grads_batched``): each as if it had been asked for by itself."""

import pytest
import torch
from torch import nn

import hibana as hb
from every_layer import CASES, made

smooth, box = hb.surrogate.ATan(), hb.surrogate.Box()


def large(layer, x):
    return lambda: (layer(), x())


OTHERS = {
    "spikes above neurons": large(
        lambda: nn.Sequential(
            hb.IF(surrogate=hb.surrogate.Box()), hb.Linear(256, 256), hb.IF(surrogate=smooth)
        ),
        lambda: torch.rand(25, 32, 256),
    ),
    "a convolution": large(
        lambda: hb.EachStep(nn.Sequential(hb.Conv2d(8, 8, 3), hb.events.MaxPool2d(2))),
        lambda: torch.rand(4, 2, 8, 12, 12).round(),
    ),
    "between two steps": large(
        lambda: nn.Sequential(hb.IF(surrogate=box), hb.DelayedLinear(64, 8, 4, sigma=0.0)),
        lambda: torch.rand(9, 4, 64),
    ),
    "normalised, running": large(
        lambda: hb.Normalized(
            hb.EachStep(nn.Sequential(hb.Conv2d(8, 16, 3), nn.BatchNorm2d(16))), hb.IF(surrogate=smooth)
        ).eval(),
        lambda: torch.rand(4, 8, 8, 48, 48),
    ),
    "learned": large(
        lambda: hb.LIF(nn.Parameter(torch.full((4,), 2.0)), surrogate=smooth), lambda: torch.rand(5, 2, 4)
    ),
    "a step for all": large(lambda: hb.LIF(surrogate=smooth), lambda: torch.rand(1, 2, 4).expand(5, 2, 4)),
}


def case_of(name):
    torch.manual_seed(0)
    if name not in OTHERS:
        return made(name)
    layer, x = OTHERS[name]()
    for module in layer.modules():
        if hasattr(module, "mode"):
            module.mode = "events"
    return layer, x


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_a_batch_of_gradients_is_each_of_them(name):
    layer, x = case_of(name)
    x.requires_grad_()
    asked = [x, *(p for p in layer.parameters() if p.requires_grad)]
    outputs = layer(x)
    grads = torch.randn(3, *outputs.shape)

    def gradients(grad, batched):
        return torch.autograd.grad(
            outputs, asked, grad, retain_graph=True, is_grads_batched=batched, allow_unused=True
        )

    wanted = zip(*[gradients(grad, False) for grad in grads], strict=True)
    for found, each in zip(gradients(grads, True), wanted, strict=True):
        if found is None or each[0] is None:
            assert found is None
            assert each[0] is None
        else:
            torch.testing.assert_close(found, torch.stack(each), rtol=1e-4, atol=1e-4)


def test_a_vectorised_jacobian_is_that_of_a_loop():
    layer = nn.Sequential(hb.Linear(4, 4), hb.LIF(surrogate=smooth))
    x = torch.rand(3, 2, 4)
    found = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(layer, x))


def test_a_sum_of_spikes_and_of_sums_takes_a_batch_of_gradients():
    x = torch.rand(5, 2, 64, requires_grad=True)
    spikes = hb.IF(surrogate=smooth)(x)
    for outputs in (spikes.sum(), hb.events.add(spikes, spikes)):
        grads = torch.randn(3, *outputs.shape)
        wanted = [torch.autograd.grad(outputs, x, grad, retain_graph=True)[0] for grad in grads]
        (found,) = torch.autograd.grad(outputs, x, grads, retain_graph=True, is_grads_batched=True)
        torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("name", ["IF", "Linear above IF"])
def test_a_batch_that_is_differentiated_again_is_refused_as_one_gradient_is(name):
    layer, x = made(name)
    outputs = layer(x.requires_grad_())
    grads = torch.randn(3, *outputs.shape)
    (found,) = torch.autograd.grad(outputs, x, grads, is_grads_batched=True, create_graph=True)
    with pytest.raises(RuntimeError, match="twice differentiated"):
        found.sum().backward()


@pytest.mark.parametrize("name", ["IF", "Linear above IF"])
def test_a_batch_by_vmap_is_told_the_way(name):
    layer, x = made(name)
    outputs = layer(x.requires_grad_())
    with pytest.raises(RuntimeError, match="is_grads_batched=True"):
        torch.vmap(lambda grad: torch.autograd.grad(outputs, x, grad, retain_graph=True)[0])(
            torch.randn(3, *outputs.shape)
        )
