"""The sum of all spikes: that of torch, and its gradient with those of others, whoever adds it."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hibana as hb
from hibana.cells.surrogate import Box
from hibana.spikes import totals
from hibana.spikes.totals import total


@pytest.fixture(autouse=True)
def handed(monkeypatch):
    """How often a gradient was handed to a node, and not expanded."""
    found = []
    add = totals.add_scalar_gradient
    monkeypatch.setattr(totals, "add_scalar_gradient", lambda *given: (found.append(1), add(*given)))
    return found


class OfRoot(hb.Cell):
    def forward(self, input_, v, s):
        v = 0.5 * v + input_ - 0.1 * torch.sqrt(s)
        return v, Box()(v - 0.9)


def layers():
    return {
        "if": hb.IF(1.0, Box(), detach_reset=True),
        "leaky": hb.LIF(tau=3.0),
        "learned": hb.LIF(tau=3.0, learn=("tau",)),
        "recurrent": hb.Recurrent(hb.IFCell(), 64),
        "of a root": hb.OverTime(OfRoot()),  # to which an absent gradient is not a zero
    }


def gradients(layer, inputs, losses, weight, **how):
    """The gradients, of the input and of all parameters, of the sum of `losses` of what `layer` emits."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    spikes = layer(inputs)
    above = spikes @ weight
    (sum(one(spikes) for one in losses) + above.square().mean()).backward(**how)
    return [inputs.grad, *(p.grad for p in layer.parameters())]


def sequence(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def by_both(loss, inputs):
    """The gradients of `inputs`, of the loss by :func:`total` and by torch's sum."""
    found = []
    for function in (total, Tensor.sum):
        leaf = inputs.detach().requires_grad_()
        loss(function, leaf).backward()
        found.append(leaf.grad)
    return found


WEIGHT = torch.randn(64, 5, generator=torch.Generator().manual_seed(4))


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("batch", [3, 4096])  # of which long ones are recomputed
def test_it_and_its_gradient_are_torchs_to_the_bit(name, batch, handed):
    layer, inputs = layers()[name], sequence(5, batch, 64)
    spikes = layer(inputs)
    assert 0 < total(spikes).item() == spikes.sum().item()
    found, wanted = (
        gradients(layer, inputs, [lambda s, f=f: 1e-5 * f(s) ** 2], WEIGHT) for f in (total, Tensor.sum)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert len(handed) == (name != "of a root")


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("backward", [{}, {"retain_graph": True}, {"create_graph": True}])
def test_many_of_one_layer_add_up(backward, handed):
    losses = [lambda s: 0.25 * total(s), lambda s: -0.5 * total(s), lambda s: s.sum() * 2]
    plain = [lambda s: 0.25 * s.sum(), lambda s: -0.5 * s.sum(), lambda s: s.sum() * 2]
    layer, inputs = hb.IF(), sequence(4, 3, 64)
    found, wanted = (gradients(layer, inputs, some, WEIGHT, **backward) for some in (losses, plain))
    torch.testing.assert_close(found, wanted)
    assert len(handed) == (0 if "create_graph" in backward else 2)


@pytest.mark.parametrize("name", ["if", "leaky", "learned"])
def test_nothing_but_the_sum_is_asked_for(name, handed):
    layer = layers()[name]
    found = by_both(lambda function, inputs: function(layer(inputs)), sequence(4, 3, 64))
    assert torch.equal(*found)
    assert found[0].any()
    assert handed


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return -value

    @staticmethod
    def backward(ctx, grad):
        return torch._neg_view(grad)


def test_a_gradient_whose_sign_is_not_in_memory(handed):
    def loss(function, inputs):
        spikes = hb.IF()(inputs)
        return Negated.apply(function(spikes)) * 3 + spikes.square().sum()

    assert torch.equal(*by_both(loss, sequence(4, 3, 64)))
    assert handed


def test_inputs_in_another_order_of_memory(handed):
    def loss(function, inputs):
        spikes = hb.IF()(inputs)
        return function(spikes) + (spikes * spikes.detach().cumsum(2)).sum()

    assert torch.equal(*by_both(loss, sequence(4, 2, 6, 5, 8).permute(0, 1, 4, 2, 3)))
    assert handed


def test_a_still_image(handed):
    layer = hb.IF()
    found = by_both(lambda function, image: function(layer(image.expand(6, 3, 64))) * 3, sequence(3, 64))
    torch.testing.assert_close(*found)
    assert handed


def test_a_normalised_layer(handed):
    each = hb.EachStep(nn.Sequential(hb.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32)))
    layer = hb.Normalized(each, hb.IF())

    def loss(function, inputs):
        spikes = layer(inputs)
        assert "own pass" in layer.explain()
        return (spikes * spikes.detach().cumsum(0)).sum() + function(spikes) * 3

    assert torch.equal(*by_both(loss, (sequence(4, 8, 8, 32, 32) < 0.2).float()))
    assert handed


def seen(spikes: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    spikes.register_hook(lambda grad: found.append(grad.clone()))
    return found


def test_who_looks_on_sees_all_of_the_gradient(handed):
    layer, found = hb.IF(), []
    for function in (total, Tensor.sum):
        hooked, retained = (
            layer(sequence(4, 3, 64).requires_grad_()),
            layer(sequence(4, 3, 64).requires_grad_()),
        )
        loss = function(hooked) * 2 + hooked.square().sum() + function(retained) * 3
        by_hook = seen(hooked)  # after the sum was asked for
        retained.retain_grad()
        loss.backward()
        found.append([*by_hook, retained.grad])
    assert all(map(torch.equal, *found))
    assert not handed


def test_gradients_of_chosen_tensors(handed):
    layer, found = hb.IF(), []
    for function in (total, Tensor.sum):
        inputs = sequence(4, 3, 64).requires_grad_()
        spikes = layer(inputs)
        loss = function(spikes) + spikes.square().sum()
        found.append(torch.autograd.grad(loss, [spikes, inputs], retain_graph=True))
        loss.backward(inputs=[inputs])
        found[-1] += (inputs.grad,)
    assert all(map(torch.equal, *found))
    assert not handed


def test_a_second_derivative_through_the_sum_alone():
    spikes = hb.IF()(sequence(4, 3, 64).requires_grad_())
    (grad,) = torch.autograd.grad(total(spikes) ** 2, spikes, create_graph=True)
    assert torch.equal(grad, (2 * spikes.sum()).expand_as(spikes))
    assert grad.requires_grad


def test_a_backward_that_fails_leaves_nothing_to_the_next():
    layer, inputs = hb.IF(), sequence(4, 3, 64).requires_grad_()
    spikes = layer(inputs)
    failing = [True]

    def fail(grad):
        if failing:
            raise ArithmeticError

    between = spikes * 1.0
    between.register_hook(fail)
    loss = between.square().sum() + total(spikes)  # whose gradient comes first
    with pytest.raises(ArithmeticError):
        loss.backward(retain_graph=True)
    assert inputs.grad is None
    failing.clear()
    loss.backward(retain_graph=True)
    once = inputs.grad.clone()
    loss.backward()
    assert torch.equal(inputs.grad, 2 * once)
    other = sequence(4, 3, 64).requires_grad_()
    again = layer(other)
    (again.square().sum() + again.sum()).backward()
    torch.testing.assert_close(other.grad, once)


@pytest.mark.parametrize(
    "write",
    [lambda s: s.mul_(2), lambda s: s.data.mul_(2), lambda s: s.detach().numpy().fill(3)],
    ids=["in place", "data", "numpy"],
)
def test_spikes_that_were_written_to(write):
    with torch.no_grad():
        spikes = hb.IF()(sequence(4, 3, 64))
        write(spikes)
    assert total(spikes) == spikes.sum()
    spikes = hb.IF()(sequence(4, 3, 64).requires_grad_())
    with torch.no_grad():
        write(spikes)
    assert total(spikes) == spikes.sum()


def test_what_is_no_layers_own_output(handed):
    layer = nn.Sequential(hb.IF(), hb.events.Flatten(2))

    def loss(function, inputs):
        spikes = layer(inputs)
        pooled = hb.events.MaxPool2d(2)(layer[0](inputs).flatten(0, 1))
        return function(spikes) * 2 + function(spikes[1:]) + function(inputs) + function(pooled)

    torch.testing.assert_close(*by_both(loss, sequence(4, 3, 8, 8)))
    assert not handed


@pytest.mark.parametrize("reentrant", [True, False])
def test_within_a_checkpoint(reentrant):
    layer = hb.IF()

    def loss(function, inputs):
        def block(x):
            spikes = layer(x)
            return function(spikes) + spikes.square().sum()

        return checkpoint(block, inputs, use_reentrant=reentrant)

    assert torch.equal(*by_both(loss, sequence(4, 3, 64)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_numbers_that_are_not_float32(dtype):
    values = (sequence(4, 3, 64) < 0.2).to(dtype)
    assert total(values).dtype == values.sum().dtype
    assert total(values) == values.sum()


def test_a_compiled_function():
    layer, inputs = hb.IF(), sequence(4, 3, 64)
    compiled = torch.compile(lambda x: total(layer(x)), backend="eager")
    assert compiled(inputs) == layer(inputs).sum()


def test_without_neurons():
    assert total(hb.IF()(torch.empty(4, 3, 0, requires_grad=True))) == 0
