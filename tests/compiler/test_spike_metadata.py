"""Gradient regions: attached to the very tensor that a spiking layer emits, and freed with it."""

import copy
import gc
import io
import weakref

import pytest
import torch

import hibana as hb
from hibana.compiler.spike_metadata import region_of


def emitted():
    """Spikes of a layer whose surrogate lets the gradient through at few of them."""
    inputs = torch.rand(4, 3, 2, 8, 8, requires_grad=True)
    return hb.IF(surrogate=hb.surrogate.Box(0.1))(2 * inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda spikes: spikes[1:],
        lambda spikes: spikes[:, :, :1],
        lambda spikes: spikes.flatten(0, 1),
        lambda spikes: spikes.clone(),
        lambda spikes: spikes.detach(),
        lambda spikes: spikes * 1.0,
        lambda spikes: spikes.mul_(0.5),
        lambda spikes: torch.zeros(3),
    ],
    ids=["steps", "channels", "view", "copy", "detached", "product", "written to", "another"],
)
def test_other_tensors_than_the_emitted_one_have_no_region(change):
    spikes = emitted()
    region = region_of(spikes)
    assert region is not None
    assert 0 < int(region.mask.count_nonzero()) < region.mask.numel()
    assert region_of(change(spikes)) is None


def test_a_flattened_tensor_of_hibanas_layer_has_the_region():
    spikes = emitted()
    flat = hb.events.Flatten(2)(spikes)
    assert region_of(flat).mask is region_of(spikes).mask


def test_the_region_is_freed_with_the_last_view_of_the_spikes():
    spikes = emitted()
    view, mask = spikes.detach(), weakref.ref(region_of(spikes).mask)
    del spikes
    gc.collect()
    assert mask() is not None  # the view keeps the memory
    del view
    gc.collect()
    assert mask() is None


def test_emitted_spikes_are_saved_and_copied_as_other_tensors():
    spikes, file = emitted().detach(), io.BytesIO()
    torch.save(spikes, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), spikes)
    assert torch.equal(copy.deepcopy(spikes), spikes)
