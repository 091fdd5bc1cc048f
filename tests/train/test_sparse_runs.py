"""Runs with sparse layers and rewiring: resuming, loading and converting them."""

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")

import torch

import hibana as hb
from hibana import train
from hibana.cli import main
from hibana.train import architecture
from hibana.train.callbacks import CheckpointWriter
from hibana.train.run import prepare


def sparse_layers(net):
    return [module for module in net.modules() if isinstance(module, hb.SparseLinear)]


@pytest.mark.parametrize(
    ("description", "shape", "connectivity"),
    [("80,60", (28, 28), 0.05), ("40-30r", (13,), 0.2), ("4c3-50", (8, 8), 0.1), ("50-skip", (13,), 0.3)],
)
def test_connectivity_is_the_fraction_over_all_linear_layers(description, shape, connectivity):
    dense = architecture.build(description, shape, 10, hb.IFCell)
    net = architecture.build(description, shape, 10, hb.IFCell, connectivity=connectivity, most_weights=4000)
    absent = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in net.parameters())
    matrices = [p for p in dense.parameters() if p.ndim == 2]
    total, outputs = sum(p.numel() for p in matrices), sum(len(p) for p in matrices)
    assert 0 <= connectivity * total - (total - absent) <= outputs  # numbers per output are rounded down
    for layer in sparse_layers(net):
        per_output = layer.targets.long().bincount()  # only the first outputs have synapses
        assert len(per_output.unique()) == 1
    assert net(torch.rand(3, 2, *shape)).shape == (3, 2, 10)
    with pytest.raises(ValueError, match="layers must have at most 100 weights together"):
        architecture.build(description, shape, 10, hb.IFCell, connectivity=connectivity, most_weights=100)


def test_with_few_synapses_only_some_hidden_neurons_are_connected():
    net = architecture.build("8w2-400,400r", (64,), 10, hb.IFCell, connectivity=0.02)
    first, second, recurrent, readout = sparse_layers(net)
    connected = len(second.targets.unique())
    assert 100 < connected < 200
    assert len(readout.targets.unique()) == 10
    for layer, sources in ((first, 8), (second, connected), (recurrent, connected), (readout, connected)):
        assert int(layer.sources.max()) < sources
    for layer in (first, second, recurrent):
        assert int(layer.targets.max()) + 1 == connected
    rates = train.scale_to_rate(net, torch.rand(20, 30, 64), 0.2)
    assert rates["if2"] == pytest.approx(0.2 * connected / 400, rel=0.1)


def test_weight_decay_applies_only_to_synapses():
    net = architecture.build("20", (13,), 2, hb.PLIFCell, connectivity=0.5)
    decayed, others = train.weight_decay_groups(net, 0.1)
    assert any(parameter is net.linear1.weight for parameter in decayed["params"])
    assert any(parameter is net.linear1.bias for parameter in others["params"])


@pytest.mark.parametrize("rule", ["deep-r", "set", "rigl"])
def test_a_resumed_run_moves_the_same_synapses(rule, tmp_path, monkeypatch):
    torch.manual_seed(0)
    options = {"connectivity": 0.1, "rewire": rule, "learning_rate": 0.05}
    settings = train.Settings(layers="30,20", epochs=2, steps=4, batch_size=130, **options)
    initial = prepare(settings, tmp_path).model
    model, _ = train.fit(settings, tmp_path / "undisturbed")
    write = CheckpointWriter.on_train_epoch_end

    def write_and_fail(self, *arguments):
        write(self, *arguments)
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointWriter, "on_train_epoch_end", write_and_fail)
        with pytest.raises(RuntimeError, match="stopped here"):
            train.fit(settings, tmp_path / "run")
    resumed, _ = train.fit(None, tmp_path / "run", resume=tmp_path / "run")
    states = zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in states)
    layers, initial_layers = sparse_layers(model.net), sparse_layers(initial.net)
    for layer, initial_layer in zip(layers, initial_layers, strict=True):
        assert len(layer.weight) == len(initial_layer.weight)
        assert not torch.equal(layer.targets, initial_layer.targets)
    loaded = train.load(tmp_path / "run")
    x = torch.rand(5, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.settings.rewire == rule


def test_the_command_line_trains_and_converts(tmp_path, capsys):
    options = {"layers": 20, "connectivity": 0.2, "rewire": "deep-r", "epochs": 1, "steps": 4}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "net.c")]) == 0
    assert "bytes of constants" in capsys.readouterr().out


def test_defaults_are_those_of_sparse_layers():
    assert train.Settings(connectivity=0.1).learning_rate == 2 * train.Settings().learning_rate
    assert train.Settings(connectivity=0.1).surrogate == "ATan"
    assert train.Settings(connectivity=0.1, learning_rate=0.1).learning_rate == 0.1


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rewire set needs a connectivity below 1"):
        train.Settings(rewire="set")
    with pytest.raises(ValueError, match=r"connectivity must be in \(0, 1\], got 0"):
        train.Settings(connectivity=0.0)
    with pytest.raises(ValueError, match="connectivity must be 1 for layers module:function"):
        train.Settings(connectivity=0.5, layers="module:function")
