"""Spikes of deep networks in evaluation: their bits are known to the layer above, until somebody writes."""

import copy
import gc
import io
from weakref import ref

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.spike_metadata import metadata_of
from hibana.spikes.bits import pack_bits
from hibana.spikes.convolution import layer as convolution_layer
from hibana.spikes.layer import pack_input
from hibana.spikes.linear import layer as linear_layer
from hibana.spikes.provenance import lookup

MODES = [torch.no_grad, torch.inference_mode]
SHAPE = 4, 16, 8, 16, 16
"""Of the images; of 32 channels, half a million numbers over all steps."""


def _deep(seed=0, neurons=None):
    torch.manual_seed(seed)
    each = hb.EachStep(nn.Sequential(hb.Conv2d(8, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)))
    layer = hb.Normalized(each, neurons or hb.IF(1.0)).eval()
    images = (torch.rand(SHAPE) < 0.3).float()
    for _ in range(2):  # remembered by the second
        with torch.no_grad():
            layer(images)
    assert layer.explain() == "normalized in the neurons' pass"
    return layer, images


def _base(spikes):
    return spikes if spikes._base is None else spikes._base


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("still", [False, True])
def test_bits_of_spikes_are_known_without_a_gradient(mode, still):
    layer, images = _deep()
    if still:
        images = images[0].expand(SHAPE)
        with torch.no_grad():
            layer(images)
    with mode():
        spikes = layer(images)
        found = lookup(spikes.flatten(0, 1))
    assert 0.02 < spikes.mean() < 0.5
    rows = spikes.movedim(2, -1).reshape(SHAPE[0], -1)
    assert torch.equal(found.spikes.view(torch.int64), pack_bits(rows)[0])
    assert found.ones == spikes.sum()
    assert found.observers is None


def _without_numbers(below, length, in_order, numbers, rows, key, auto):
    return pack_input(below, length, in_order, None, lambda: pytest.fail("numbers are looked at"), key, auto)


@pytest.mark.parametrize("mode", MODES)
def test_the_layer_above_takes_the_bits_and_looks_at_no_number(mode, monkeypatch):
    layer, images = _deep()
    above, dense = hb.Conv2d(32, 16, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
    above.load_state_dict(dense.state_dict())
    linear = hb.Linear(512, 7)
    above.mode = linear.mode = "events"
    with mode():
        spikes = layer(images)
        for where in (convolution_layer, linear_layer):
            monkeypatch.setattr(where, "pack_input", _without_numbers)
        got, wanted = above(spikes.flatten(0, 1)), dense(spikes.flatten(0, 1))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        last = spikes.movedim(2, -1).flatten(3)
        torch.testing.assert_close(
            linear(last), nn.functional.linear(last, linear.weight, linear.bias), rtol=1e-4, atol=1e-4
        )
        pooled = hb.events.MaxPool2d(2)(spikes.flatten(0, 1))
        assert torch.equal(pooled, nn.functional.max_pool2d(spikes.flatten(0, 1), 2))
        got, wanted = above(pooled), dense(pooled)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        again = hb.events.MaxPool2d(2)(pooled)
        assert torch.equal(again, nn.functional.max_pool2d(pooled, 2))
        assert torch.equal(
            lookup(again).spikes.view(torch.int64), pack_bits(again.movedim(1, -1).flatten(1))[0].view(-1, 2)
        )


WRITES = {
    "mul_": lambda spikes: spikes.mul_(0.5),
    "one number": lambda spikes: spikes[1, 2, 3, 4, 5].fill_(2.0),
    "a view": lambda spikes: spikes.flatten(0, 1)[:, 3].zero_(),
    "out": lambda spikes: torch.add(spikes, 1.0, out=spikes),
    "copy_": lambda spikes: spikes.copy_(spikes.flip(0)),
    "a detached one": lambda spikes: spikes.detach().zero_(),
    "data": lambda spikes: spikes.data.zero_(),
    "other data": lambda spikes: setattr(spikes, "data", spikes.flip(0)),
    "numpy": lambda spikes: spikes.numpy().fill(0.25),
}


@pytest.mark.cover(2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("what", ["spikes", "sum", "pooled"])
def test_what_was_written_to_is_taken_as_it_is(mode, write, what):
    layer, images = _deep()
    above, dense = hb.Conv2d(32, 16, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
    above.load_state_dict(dense.state_dict())
    above.mode = "events"
    with mode():
        spikes = layer(images)
        if what == "sum":
            spikes = hb.events.add(spikes, layer(images.flip(0)))
            assert lookup(spikes).max_value == 2
        if what == "pooled":
            spikes = hb.EachStep(hb.events.MaxPool2d(2))(spikes)
            assert lookup(spikes).ones == spikes.sum()
        WRITES[write](spikes)
        assert lookup(spikes) is None
        got, wanted = above(spikes.flatten(0, 1)), dense(spikes.flatten(0, 1))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_sums_of_spikes_are_known_and_sums_of_sums(mode):
    layer, images = _deep()
    with mode():
        one, other = layer(images), layer(images.flip(0))
        total = hb.events.add(one, other)
        assert torch.equal(total, one + other)
        assert total.stride() == (one + other).stride()
        assert lookup(total).max_value == 2
        more = hb.events.add(total, one)
        assert torch.equal(more, one + other + one)
        assert lookup(more).max_value == 3
        for unknown in (one * 1.0, torch.rand_like(one)):
            assert torch.equal(hb.events.add(one, unknown), one + unknown)
            assert lookup(hb.events.add(one, unknown)) is None


def test_other_memory_than_all_of_it_in_order_is_not_known():
    layer, images = _deep()
    with torch.no_grad():
        spikes = layer(images)
        for part in (spikes[1:], spikes[:, :, :16], spikes.clone(), spikes.contiguous()):
            assert lookup(part) is None
    assert lookup(torch.zeros(3)) is None


def test_nothing_is_remembered_of_spikes_that_are_gone():
    layer, images = _deep()
    with torch.inference_mode():
        spikes = layer(images)
        view, planes = spikes.flatten(0, 1), ref(metadata_of(spikes).planes)
        del spikes
        assert lookup(view) is not None  # a view keeps the memory, and what is known of it
        assert planes() is not None
        del view
    gc.collect()
    assert planes() is None


def test_spikes_in_evaluation_are_saved_and_copied_as_any_tensor():
    layer, images = _deep()
    with torch.inference_mode():
        spikes = layer(images)
    file = io.BytesIO()
    torch.save(spikes, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), spikes)
    copied = copy.deepcopy(spikes)
    assert torch.equal(copied, spikes)
    assert lookup(copied) is None


def test_a_layer_above_learns_from_spikes_that_got_no_gradient():
    layer, images = _deep()
    above, dense = hb.Conv2d(32, 16, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
    above.load_state_dict(dense.state_dict())
    above.mode = "events"
    with torch.no_grad():
        spikes = layer(images)
    factors = torch.randn(64, 16, 16, 16)
    for each in (above, dense):
        (each(spikes.flatten(0, 1)) * factors).sum().backward()
    torch.testing.assert_close(above.weight.grad, dense.weight.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(above.bias.grad, dense.bias.grad, rtol=1e-3, atol=1e-3)


def test_what_emits_no_spikes_is_run_as_before():
    class Graded(hb.Cell):
        def forward(self, input_, v_previous):
            return (0.5 * v_previous + input_,)

    layer, images = _deep(neurons=hb.OverTime(Graded()))
    with torch.no_grad():
        assert lookup(layer(images)) is None


@pytest.mark.parametrize("shape", [(2, 3), (4, 16, 16, 16, 64)])
def test_spikes_that_were_given_another_shape_are_not_known(shape):
    layer, images = _deep()
    with torch.no_grad():
        for changed in (
            lambda t: setattr(t, "data", torch.zeros(shape)),
            lambda t: t.set_(torch.zeros(shape)),
            lambda t: t.resize_(shape),
        ):
            spikes = _base(layer(images))
            assert lookup(spikes) is not None
            changed(spikes)
            assert lookup(spikes) is None
