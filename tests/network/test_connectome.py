"""``hb.models.connectome``: the network of a wiring diagram from files and arrays."""

import numpy as np
import pandas as pd
import pytest
import torch

import hibana as hb
from hibana.data.connectome import read_connectome_table

BIG = 720575940600000000  # float64 has no exact form of these ids


@pytest.fixture
def shiu(tmp_path):
    """Files of the form that Shiu et al. published."""
    order = [BIG + 5, BIG + 1, BIG + 9]
    text = "\n".join([",Completed", *(f"{id_},True" for id_ in order)])
    (tmp_path / "completeness.csv").write_text(text + "\n", encoding="utf-8")
    pre, post, signed = [0, 1, 2, 0], [1, 2, 0, 2], [218, 60, -7, -30]
    edges = pd.DataFrame(
        {
            "Presynaptic_ID": np.take(order, pre), "Postsynaptic_ID": np.take(order, post),
            "Presynaptic_Index": pre, "Postsynaptic_Index": post, "Connectivity": np.abs(signed),
            "Excitatory": np.sign(signed), "Excitatory x Connectivity": signed,
        }
    )  # fmt: skip
    edges.to_parquet(tmp_path / "connectivity.parquet")
    return tmp_path


def test_the_files_of_shiu_et_al_run_as_they_are(shiu):
    net, neurons = hb.models.connectome(
        shiu / "connectivity.parquet", shiu / "completeness.csv", dtype=torch.float64
    )
    assert neurons.ids.tolist() == [BIG + 5, BIG + 1, BIG + 9]
    signed = np.array([[0, 0, -7], [218, 0, 0], [-30, 60, 0]])
    np.testing.assert_allclose(net.recurrent.to_dense().detach(), signed * 0.275)
    assert net.recurrent.delays.unique().tolist() == [17]
    assert any("weight from column 'Excitatory x Connectivity'" in note for note in neurons.notes)
    shock = hb.Stimulus(spikes=hb.SpikeTrains(torch.tensor([10]), torch.tensor([0]), (20, 3)), weight=68.75)
    record, _ = hb.simulate(net, 110, stimulus=shock)
    assert record.spikes.steps.tolist() == [40, 95]  # 218 synapses: 59.95 mV
    assert record.spikes.neurons.tolist() == [0, 1]


def test_constants_become_steps():
    edges = {"source": [1], "target": [2], "synapses": [4]}
    net, _ = hb.models.connectome(
        edges, dt=0.5, tau_membrane=10.0, tau_synapse=2.0, threshold=5.0, refractory=2.0, delay_ms=1.0,
        weight_per_synapse=0.5, sign=-1, keeps_current=True,
    )  # fmt: skip
    cell, synapses = net.cell, net.recurrent
    assert (cell.tau, cell.tau_synapse, cell.threshold, cell.keeps_current) == (20.0, 4.0, 5.0, True)
    assert cell.period.tolist() == [4.0, 4.0]
    assert (synapses.weight.tolist(), synapses.delays.tolist()) == ([-2.0], [1])
    assert synapses.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.txt", "e.parquet", "e.feather"])
def test_files_have_the_connections_of_arrays(tmp_path, name):
    edges = pd.DataFrame({"pre": ["a", "b"], "post": ["b", "c"], "extra": [1, 2], "synapses": [3, 4]})
    path = tmp_path / name
    if name.endswith((".parquet", ".feather")):
        getattr(edges, f"to_{path.suffix[1:]}")(path)
    else:
        edges.to_csv(path, index=False, sep={"tsv": "\t", "txt": " "}.get(path.suffix[1:], ","))
    assert [*read_connectome_table(path, {}).columns] == ["pre", "post", "synapses"]
    assert [*read_connectome_table(path).columns] == [*edges.columns]
    net, neurons = hb.models.connectome(path, sign=1)
    assert neurons.ids.tolist() == ["a", "b", "c"]
    assert net.recurrent.weight.tolist() == pytest.approx([3 * 0.275, 4 * 0.275])


def test_mistakes_name_file_value_and_fix(tmp_path):
    edges, neurons = tmp_path / "edges.csv", tmp_path / "neurons.csv"
    edges.write_text("source,target,synapses\n1,2,3\n2,x,4\n", encoding="utf-8")
    neurons.write_text("id,kind\n1,A\n2,B\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    (tmp_path / "a.parquet").write_text("text", encoding="utf-8")
    good = {"source": [1], "target": [2], "synapses": [4], "sign": [1]}
    cases = [
        (
            (edges, neurons),
            {},
            r"edges\.csv, column 'target', row 2: 'x' is no id of a neuron in .*neurons\.csv",
        ),
        ((tmp_path / "no.csv",), {}, r"no\.csv"),
        ((tmp_path / "empty.csv",), {}, r"empty\.csv"),
        ((tmp_path / "a.parquet",), {}, r"a\.parquet"),
        ((neurons,), {}, r"neurons\.csv: a column of sources is missing; name one of id, kind as source="),
        ((good,), {"delay_ms": 50.0}, "delay_ms must be 1 to 256 steps of 0.1 ms, got 50.0"),
        ((good,), {"refractory": -1.0}, "refractory must be a positive number of milliseconds, got -1.0"),
        ((good,), {"dt": 0}, "dt must be a positive number of milliseconds, got 0"),
        ((good,), {"threshold": -45.0}, "threshold must be positive and finite, got -45.0"),
        ((good,), {"weights": "synapses"}, "columns must be among source, .* got weights"),
        ((good,), {"tau_synapse": 20.0}, "tau_synapse must differ from tau"),
    ]
    for arguments, options, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            hb.models.connectome(*arguments, **options)
