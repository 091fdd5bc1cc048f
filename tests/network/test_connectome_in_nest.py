"""The network of a wiring diagram in NEST, as ``examples/connectome_in_nest.py`` exports it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nest", reason="nest-simulator is not installed")
pytest.importorskip("pandas")

PATH = Path(__file__).parents[2] / "examples" / "connectome_in_nest.py"


def test_spikes_equal_those_of_nest(tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(3)
    edges, neurons = tmp_path / "edges.csv", tmp_path / "neurons.csv"
    rows = [
        f"{i},{j},{random.integers(1, 30)},{random.integers(0, 40)}"
        for i, j in random.integers(0, 60, (900, 2))
    ]
    edges.write_text("\n".join(["pre,post,synapses,delay", *rows]))
    kinds = [f"{i},{'sensory' if i < 12 else 'other'}" for i in range(60)]
    neurons.write_text("\n".join(["id,kind", *kinds]))
    specification = importlib.util.spec_from_file_location("connectome_in_nest", PATH)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    arguments = [str(edges), str(neurons), "--activate", "kind=sensory", "--sign-seed", "0", "--seconds", "2"]
    monkeypatch.setattr(sys, "argv", [str(PATH), *arguments])
    example.main()
    nest_line, hibana_line = capsys.readouterr().out.strip().splitlines()[-2:]
    spikes = int(hibana_line.split()[1].replace(",", ""))
    assert spikes > 3000
    assert f" {spikes:,} spikes of this process" in nest_line
    assert hibana_line.endswith(" 0 spikes differ")
