"""Activity metrics against independent counts; `every_process.py` tests them in two processes."""

import math

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn.metrics import FiringRate, SilentNeurons, Sparsity, SynOps, operations


def binary(*shape, rate=0.3, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def test_the_rate_of_unequal_batches_is_that_of_all_samples():
    metric, parts = FiringRate(), [binary(4, 1, 7, rate=0.9), binary(4, 13, 7, rate=0.1, seed=1)]
    for part in parts:
        metric.update(part)
    assert metric.compute().item() == pytest.approx(torch.cat(parts, dim=1).mean().item())


def test_the_rate_without_updates_is_nan():
    with pytest.warns(UserWarning, match="compute"):
        assert math.isnan(FiringRate().compute())


def test_sparsity_counts_zeros_of_any_values():
    metric = Sparsity()
    metric.update(torch.tensor([0.0, -0.5, 2.0, 0.0, 0.0]))
    assert metric.compute().item() == pytest.approx(0.6)


LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "sparse": (hb.SparseLinear(6, 4, 0.6), (6,)),
    "conv": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "strided": (nn.Conv2d(2, 3, 3, stride=2), (2, 6, 7)),
    "dilated": (nn.Conv2d(2, 3, 2, dilation=2, padding=1), (2, 5, 6)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2, padding="same"), (4, 5, 5)),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4), (4, 9)),
}


def count_reached_outputs(layer, position, shape):
    """The number of outputs that change if the input at `position` does; all weights are 1."""
    fill = nn.init.ones_
    for parameter in layer.parameters():
        fill(parameter)
    impulse = torch.zeros(1, *shape)
    impulse[(0, *position)] = 1.0
    with torch.no_grad():
        return int((layer(impulse) != layer(torch.zeros(1, *shape))).sum())


@pytest.mark.parametrize("name", LAYERS)
def test_each_spike_costs_the_outputs_that_it_changes(name):
    layer, shape = LAYERS[name]
    spikes = binary(3, *shape)
    expected = sum(count_reached_outputs(layer, p[1:].tolist(), shape) for p in spikes.nonzero())
    kind, count = operations(layer, spikes)
    assert (kind, int(count)) == ("acs", expected)


@pytest.mark.parametrize(
    "layer",
    [
        hb.Window(3, 4, 3, 2),
        hb.Window(4, 8, 2, groups=2),
        hb.DelayedLinear(3, 2, 5),
        hb.SparseLinear(3, 7, 0.6, delays=torch.randint(0, 9, (7, 3))),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_each_spike_costs_the_outputs_that_it_changes_later(layer):
    layer.eval()
    for parameter in (layer.weight, layer.bias):
        nn.init.ones_(parameter)
    spikes = binary(7, 2, 4 if layer.weight.shape[0] == 8 else 3)
    expected = 0
    for place in spikes.nonzero().tolist():
        impulse = torch.zeros_like(spikes)
        impulse[tuple(place)] = 1.0
        with torch.no_grad():
            expected += int((layer(impulse) != layer(torch.zeros_like(spikes))).sum())
    kind, count = operations(layer, spikes)
    assert (kind, int(count)) == ("acs", expected)
    assert operations(layer, spikes + 0.5)[0] == "macs"
    alone = sum(operations(layer, spikes[:length, [b]])[1] for b, length in enumerate([3, 7]))
    assert operations(layer, spikes, torch.tensor([3, 7]))[1] == alone


@pytest.mark.parametrize("name", LAYERS)
def test_values_cost_as_much_as_spikes_everywhere(name):
    layer, shape = LAYERS[name]
    _, everywhere = operations(layer, torch.ones(3, *shape))
    kind, count = operations(layer, torch.full([3, *shape], 0.5))
    assert (kind, int(count)) == ("macs", int(everywhere))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), hb.IF(0.1), nn.Linear(5, 2), hb.LI())


def test_operations_per_inference_of_a_network_and_their_energy():
    net, count = network(), SynOps(energy=True)
    inputs = hb.encode.constant(torch.rand(3, 6), 8)
    with count.watch(net):
        net(inputs)
    hidden = net[:2](inputs)
    acs, macs = hidden.sum().item() * 2 / 3, 6 * 5
    result = count.compute()
    assert result["acs"].item() == pytest.approx(acs)
    assert acs > 0
    assert result["macs"].item() == macs
    assert result["joules"].item() == pytest.approx(acs * 0.9e-12 + macs * 4.6e-12)


def test_padded_samples_count_as_they_do_alone():
    net = nn.Sequential(nn.Linear(6, 5), hb.IF(0.1), hb.Window(5, 4, 3), hb.IF(0.1), nn.Linear(4, 2), hb.LI())
    inputs, lengths = torch.rand(9, 3, 6), torch.tensor([9, 2, 5])
    padded, alone = SynOps(), SynOps()
    rates, silent = (FiringRate(), FiringRate()), (SilentNeurons(), SilentNeurons())
    sparse = Sparsity(), Sparsity()
    with padded.watch(net, lengths):
        net(inputs)
    for counts in (rates, silent, sparse):
        counts[0].update(net[:2](inputs), lengths)
    for sample, length in enumerate(lengths):
        one = inputs[:length, [sample]]
        with alone.watch(net):
            net(one)
        for counts in (rates, silent, sparse):
            counts[1].update(net[:2](one))
    assert padded.compute() == alone.compute()
    assert padded.acs > 0
    for one, other in (rates, silent, sparse):
        assert one.compute() == other.compute()


def test_neurons_that_never_spiked_are_counted():
    metric, spikes = SilentNeurons(), torch.zeros(4, 3, 2, 5)
    spikes[1, 2, 0, 3] = spikes[0, 0, 1, 1] = 1.0
    for step in spikes:
        metric.update(step[None])
    assert metric.compute() == 8


def test_watching_ends_with_the_block():
    net, count = network(), SynOps()
    with count.watch(net):
        net(torch.rand(2, 3, 6))
    before = count.compute()
    net(torch.rand(2, 3, 6))
    assert count.compute() == before


def test_a_layer_that_is_not_counted_is_an_error():
    with pytest.raises(TypeError, match="a linear layer or a convolution, got ReLU"):
        operations(nn.ReLU(), torch.ones(1))
    with pytest.raises(ValueError, match="padding_mode"):
        operations(nn.Conv2d(1, 1, 3, padding_mode="circular"), torch.ones(1, 1, 4, 4))


def test_neurons_silenced_by_nan_cause_a_warning():
    layer, silent = hb.IF(), SilentNeurons()
    inputs = torch.full([6, 2, 4], 0.6)
    inputs[3:, 1, 2] = torch.nan
    with pytest.warns(hb.NetworkWarning, match="1 of 4 neurons were given NaN or infinity"):
        silent.update(layer(inputs), inputs=inputs)
    silent.update(layer(inputs), torch.tensor([6, 3]), inputs)  # steps after the end are ignored
