"""Spikes as objects of Neo and NWB, read back from files by their libraries."""

import pytest
import torch

import hibana as hb

TRAINS = hb.SpikeTrains(torch.tensor([1, 2, 2, 40]), torch.tensor([2, 0, 2, 2]), (50, 4))
POPULATIONS = TRAINS.split({"a": 3, "none": 0, "b": 1})
TIMES = [[20], [], [10, 20, 400], []]
"""Spike times of each neuron in units of 0.01 ms, for steps of 0.1 ms."""


def test_neo_has_a_train_of_each_neuron():
    pytest.importorskip("neo", reason="the extra neuro is not installed")
    block = hb.convert.to_neo(POPULATIONS, dt=0.1)
    (segment,) = block.segments
    assert [(t.annotations["population"], t.annotations["neuron"]) for t in segment.spiketrains] == [
        *(("a", neuron) for neuron in range(3)),
        ("b", 0),
    ]
    assert [(train.rescale("us").magnitude / 10).round().tolist() for train in segment.spiketrains] == TIMES
    assert {float(train.t_stop.rescale("s")) for train in segment.spiketrains} == {0.005}
    assert len(segment.filter(population="b")) == 1


def test_nwb_has_a_unit_of_each_neuron(tmp_path):
    pynwb = pytest.importorskip("pynwb", reason="the extra neuro is not installed")
    with pynwb.NWBHDF5IO(tmp_path / "spikes.nwb", "w") as io:
        io.write(hb.convert.to_nwb(POPULATIONS, dt=0.1, description="four neurons"))
    assert pynwb.validate(path=tmp_path / "spikes.nwb") == []
    with pynwb.NWBHDF5IO(tmp_path / "spikes.nwb", "r") as io:
        file = io.read()
        units = file.units.to_dataframe()
    assert file.session_description == "four neurons"
    assert [(times * 1e5).round().tolist() for times in units["spike_times"]] == TIMES
    assert [*zip(units["population"], units["neuron"], strict=True)] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
    ]
    assert {tuple(intervals[0]) for intervals in units["obs_intervals"]} == {(0.0, 0.005)}


@pytest.mark.parametrize("export", ["to_neo", "to_nwb"])
def test_steps_have_a_length(export):
    pytest.importorskip(
        {"to_neo": "neo", "to_nwb": "pynwb"}[export], reason="the extra neuro is not installed"
    )
    arguments = ("a network",) if export == "to_nwb" else ()
    with pytest.raises(ValueError, match="dt must be the positive length of a step in milliseconds"):
        getattr(hb.convert, export)(TRAINS, -0.1, *arguments)
