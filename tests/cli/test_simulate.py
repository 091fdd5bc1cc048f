"""``hibana simulate``: its tables and figures, and messages that name option, value and fix."""

import os
import re
import signal

import numpy as np
import pandas as pd
import pytest
import torch

import hibana as hb
from hibana.cli import main
from hibana.network import simulation


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Tables of 60 neurons, four of which have the kind S and excite others."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    source, target = random.integers(0, 60, (2, 500))
    pd.DataFrame({"source": source, "target": target, "synapses": 40}).to_csv("edges.csv", index=False)
    kinds = np.where(np.arange(60) < 4, "S", np.where(np.arange(60) < 40, "Inter one", "Inter two"))
    signs = np.where(np.arange(60) % 5, 1, -1)
    pd.DataFrame({"id": range(60), "kind": kinds, "sign": signs}).to_csv("neurons.csv", index=False)
    return tmp_path


RUN = ["simulate", "edges.csv", "--neurons", "neurons.csv", "--activate", "kind=S", "--seconds", "0.2"]


def test_tables_and_figures(tables, capsys):
    assert main([*RUN, "--trials", "3", "--out", "out", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    assert "edges.csv: source from column 'source'" in text
    assert "neurons.csv: sign from column 'sign'" in text
    assert "60 neurons, 4 driven at 150 Hz" in text
    assert "0.6 s of model time in" in text
    assert "real-time factor" in text
    spikes, rates = pd.read_parquet("out/spikes.parquet"), pd.read_parquet("out/rates.parquet")
    assert [*spikes.columns] == ["trial", "ms", "id"]
    assert sorted(spikes["trial"].unique()) == [0, 1, 2]
    assert f"{len(spikes):,} spikes" in text
    assert rates["rate"].is_monotonic_decreasing
    counts = spikes.groupby("id").size()
    assert dict(zip(rates["id"], (rates["rate"] * 0.6).round().astype(int), strict=True)) == counts.to_dict()
    assert set(rates["kind"]) <= {"S", "Inter one", "Inter two"}
    assert all((tables / "out" / f"{name}.png").stat().st_size > 5000 for name in ("raster", "active"))

    # the same spikes in Python
    net, neurons = hb.models.connectome("edges.csv", "neurons.csv", dtype=torch.float64)
    stimulus = hb.Stimulus(
        neurons.select(kind="S"), 150.0, weight=68.75, state="v", dt=0.1, parameters={"period": 1}, seed=4
    )
    records, _ = hb.simulate(net, 2000, stimulus=stimulus, trials=3)
    last = spikes[spikes["trial"] == 2]
    assert last["id"].tolist() == records[2].spikes.neurons.tolist()
    assert (last["ms"] * 10).round().tolist() == records[2].spikes.steps.tolist()


def test_csv_and_silenced_neurons(tables, capsys):
    assert main([*RUN, "--csv", "--out", "a"]) == 0
    assert main([*RUN, "--csv", "--out", "b", "--silence", "0,1", "--silence", "kind=Inter*"]) == 0
    assert "58 silenced" in capsys.readouterr().out
    before, after = (pd.read_csv(f"{name}/spikes.csv") for name in "ab")
    edges = pd.read_csv("edges.csv")
    reached = set(edges[edges["source"].isin([2, 3])]["target"]) | {0, 1, 2, 3}
    assert {0, 1, 2, 3} <= set(after["id"]) <= reached
    assert not set(before["id"]) <= reached


def test_interruption_keeps_what_was_simulated(tables, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "LONGEST_CHUNK", 100)
    advance, chunks = simulation.Simulation.advance, []

    def advance_and_interrupt(self, steps):
        chunks.append(steps)
        if len(chunks) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, steps)

    monkeypatch.setattr(simulation.Simulation, "advance", advance_and_interrupt)
    arguments = [*RUN, "--out", "out"]
    arguments[arguments.index("0.2")] = "5"
    assert main([*arguments, "--trials", "40"]) == 0
    assert "interrupted: " in capsys.readouterr().out
    spikes = pd.read_parquet("out/spikes.parquet")
    assert len(spikes) > 0
    assert spikes["ms"].max() < 1000


def test_help_fits_a_screen(capsys):
    assert main(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--activate" in text
    assert len(text.splitlines()) <= 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edges.csv"], "no neuron is activated, so none would spike: name some by --activate COLUMN=VALUE"),
        (
            ["edges.csv", "--activate", "kind=S"],
            "--activate kind=S: 'kind' is no column of the table of neurons",
        ),
        (["edges.csv", "--activate", "77"], "--activate 77: '77' is no id of a neuron; ids are .*0"),
        ([*RUN[1:4], "--activate", "kind=X"], "no neuron has kind=X; frequent values are Inter one"),
        ([*RUN[1:4], "--activate", "knd=S"], "'knd' is no column .* which has id, kind, sign"),
        ([*RUN[1:6], "--silence", "x"], "--silence x: 'x' is no id of a neuron"),
        (
            [*RUN[1:6], "--rate", "20000"],
            "--rate must be above 0 and at most 10000 spikes per second, got 20000",
        ),
        ([*RUN[1:6], "--seconds", "0"], "--seconds must be at least one step of 0.1 ms, got 0.0"),
        ([*RUN[1:6], "--trials", "0"], "--trials must be at least 1, got 0"),
        (["none.csv", "--activate", "1"], "none.csv"),
        ([*RUN[1:6], "--source", "from"], "edges.csv: column 'from' is missing; name one of source, target"),
        ([*RUN[1:6], "--sign", "kind"], "neurons.csv, column 'kind', row 1: 'S' is no finite number"),
        (
            [*RUN[1:6], "--id", "key"],
            "neurons.csv: column 'key' is missing; name one of id, kind, sign as id=",
        ),
        (["neurons.csv", "--activate", "1"], "neurons.csv: a column of sources is missing"),
    ],
)
def test_mistakes_are_one_sentence(tables, capsys, arguments, message):
    assert main(["simulate", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert re.search(message, text), text
