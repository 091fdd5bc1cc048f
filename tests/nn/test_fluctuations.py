"""Weights drawn so that fluctuations drive a layer: what its potential then does over time."""

import copy
import math

import pytest
import torch

import hibana as hb
from hibana.train import fluctuation_driven_, fluctuations

NEURONS, INPUTS, RATE = 400, 300, 0.08


def potentials(weight, cell, rate=RATE, steps=600, inputs=INPUTS):
    """Of `cell` without a threshold, ``[T, batch, neurons]``, driven through `weight` by random spikes."""
    free = copy.deepcopy(cell)
    free.threshold = 1e30
    spikes = (torch.rand(steps, 8, inputs) < rate).float()
    return hb.record(free, spikes @ weight.T)["v"][200:]


CELLS = {
    "LIF": hb.LIFCell(tau=5.0),
    "a slow one": hb.LIFCell(tau=40.0, threshold=2.0),
    "with synapses of its own": hb.CubaLIFCell(tau=4.0, tau_synapse=6.0),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("xi", [1.0, 3.0])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_threshold_lies_xi_deviations_above_the_mean(name, xi, mean):
    cell = CELLS[name]
    weight = fluctuation_driven_(torch.empty(NEURONS, INPUTS), cell, RATE, xi=xi, mean=mean)
    v = potentials(weight, cell)
    wanted = (cell.threshold - mean) / xi
    assert v.std().item() == pytest.approx(wanted, rel=0.08)
    assert v.mean().item() == pytest.approx(mean, abs=4 * wanted / math.sqrt(NEURONS))


def test_each_neuron_is_driven_as_its_own_time_constant_wants():
    cell = hb.LIFCell(tau=torch.cat([torch.full((200,), 2.0), torch.full((200,), 50.0)]))
    weight = fluctuation_driven_(torch.empty(NEURONS, INPUTS), cell, RATE, xi=2.0)
    v = potentials(weight, cell)
    assert v[..., :200].std().item() == pytest.approx(0.5, rel=0.08)
    assert v[..., 200:].std().item() == pytest.approx(0.5, rel=0.12)


def test_parts_of_the_variance_add_up_to_the_whole():
    cell = hb.LIFCell(tau=5.0)
    parts = [
        fluctuation_driven_(torch.empty(NEURONS, n), cell, RATE, part=part)
        for n, part in ((INPUTS, 0.9), (NEURONS, 0.1))
    ]
    v = potentials(torch.cat(parts, dim=1), cell, inputs=INPUTS + NEURONS)
    assert v.std().item() == pytest.approx(0.5, rel=0.05)


def test_under_the_window_of_a_convolution_are_its_inputs():
    weight = fluctuation_driven_(torch.empty(NEURONS, 60, 5), hb.LIFCell(tau=5.0), RATE)
    assert weight.std().item() == pytest.approx(
        fluctuation_driven_(torch.empty(NEURONS, 300), hb.LIFCell(tau=5.0), RATE).std().item(), rel=0.02
    )


def test_a_layer_that_fluctuations_drive_fires_near_what_a_gaussian_potential_would():
    """At xi of 2 a threshold is passed now and then: neither silence nor a spike at every step."""
    cell = hb.LIFCell(tau=5.0)
    weight = fluctuation_driven_(torch.empty(NEURONS, INPUTS), cell, RATE, xi=2.0)
    spikes = hb.OverTime(cell)((torch.rand(300, 8, INPUTS) < RATE).float() @ weight.T)
    assert 0.002 < spikes.mean().item() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate must lie in"),
        ({"xi": 0.0}, "xi must be positive"),
        ({"part": 1.5}, "part must lie in"),
        ({"mean": 1.0}, "below the threshold"),
        ({"mean": 0.99}, "nearer to 0"),
        ({"cell": hb.IFCell()}, "must forget"),
        ({"cell": hb.LICell()}, "no|none"),
        ({"weight": torch.empty(4)}, "weight must be"),
    ],
)
def test_what_can_not_be_is_refused(options, message, monkeypatch):
    monkeypatch.setattr(fluctuations, "LONGEST", 1000)
    given = {"weight": torch.empty(4, 3), "cell": hb.LIFCell(tau=5.0), "rate": 0.1} | options
    with pytest.raises(ValueError, match=message):
        fluctuation_driven_(**given)
