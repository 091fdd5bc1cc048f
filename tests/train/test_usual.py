"""What a run is of which little was said: of sequences one recipe, whatever their length."""

import copy
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import hibana as hb
from hibana import data, loss, train
from hibana.data import DATA_SETS
from hibana.train import Classifier, Settings, architecture, fit, linear, recipes, results

SEQUENCES = ["mnist-1d", "spoken-digits", "shd", "ssc"]
OTHERS = ["digits", "fashion-mnist", "n-mnist", "dvs-gesture"]


SERIES = [*recipes.SEQUENCES, "layers"]


@pytest.mark.parametrize("name", recipes.SEQUENCES)
def test_sequences_of_numbers_share_what_is_not_said_and_nothing_else_has_it(name):
    (found,) = {getattr(Settings(data=each), name) for each in SEQUENCES}
    assert found not in {getattr(Settings(data=each), name) for each in OTHERS}


def test_what_was_said_stays():
    said = {"layers": "8r", "loss": "rate", "smoothing": 0.0, "start_rate": 0.0, "readout_tau": 3.0}
    settings = Settings(data="mnist-1d", cell="ALIF", **said)
    assert {name: getattr(settings, name) for name in said} == said
    assert settings.cell == "ALIF"


@pytest.mark.parametrize("steps", [1, 2, 11, 12, 27, 28, 40, 83, 84, 196, 1000])
def test_windows_reach_over_as_much_of_a_sequence_as_they_can(steps):
    net = architecture.build(
        Settings(data="shd", steps=steps).layers, (1,), 2, Settings(data="shd").make_cell
    )
    windows = [layer for layer in net if hasattr(layer, "reach")]
    first, second, third = (window.dilation for window in windows)
    assert (first, third) == (1, second**2)
    reach = [4 * (1 + d + d * d) for d in (second, second + 1)]
    assert reach[0] <= max(12, steps) < max(13, reach[1])


def test_data_of_ones_own_are_sequences_by_their_kind(tmp_path):
    for kind, cell in (("sequences", "LIF"), ("arrays", "IF")):
        assert Settings(data=str(tmp_path), kind=kind).cell == cell


def test_pictures_and_recordings_of_ones_own_are_seen_by_convolutions(tmp_path):
    layers = {
        kind: Settings(data=str(tmp_path), kind=kind).layers
        for kind in ("images", "events", "arrays", "table")
    }
    assert layers["arrays"] == layers["table"] == "256,256"
    for name, shape in (
        ("images", (3, 5, 4)),
        ("images", (28, 28)),
        ("events", (2, 34, 34)),
        ("events", (2, 1, 3)),
    ):
        net = architecture.build(layers[name], shape, 2, Settings().make_cell)
        assert any(isinstance(module, hb.Conv2d) for module in net.modules())
        assert net(torch.rand(2, 1, *shape)).shape == (2, 1, 2)
    assert Settings(data=str(tmp_path), kind="images", layers="64").layers == "64"


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((9, 8), np.uint8, "images"),
        ((9, 8), np.float32, "sequences"),
        ((3, 9, 8), np.float32, "images"),
        ((9, 8, 3), np.float64, "images"),
        ((5, 9, 8), np.float32, "table"),
        ((9,), np.uint8, "table"),
    ],
)
@pytest.mark.parametrize("names", [("x", "y"), ("images_train", "labels_train")])
def test_arrays_are_pictures_by_their_shape_and_type(tmp_path, shape, dtype, kind, names):
    layers = Settings(data="mine", kind=kind).layers
    inputs, labels = np.zeros([6, *shape], dtype), np.array(["a", "b"] * 3)
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (inputs, labels), strict=True)))
    np.savez_compressed(tmp_path / "packed.npz", **dict(zip(names, (inputs, labels), strict=True)))
    (tmp_path / "folder").mkdir()
    for name, array in zip(names, (inputs, labels), strict=True):
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for source in ("mine.npz", "packed.npz", "folder"):
        assert Settings(data=str(tmp_path / source)).layers == layers
    (tmp_path / "broken.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:200])
    assert Settings(data=str(tmp_path / "broken.npz")).layers == "256,256"


def test_data_in_memory_are_trained_on_as_a_command_would_train_on_their_files(tmp_path):
    drawn = np.random.default_rng(0)
    frames = [drawn.random((length, 3)) for length in range(10, 34)]
    series = data.Sequences(frames, labels=["even", "odd"] * 12, steps=16)
    chosen = Settings(epochs=1, cell="ALIF", batch_size=8)
    _, outcome = fit(chosen, tmp_path / "run", samples=series)
    usual = Settings(data="mine", kind="sequences", steps=16)
    assert outcome.settings.cell == "ALIF"
    for name in (*SERIES, "epochs"):
        said = name in ("cell", "epochs", "batch_size")
        assert said or getattr(outcome.settings, name) == getattr(usual, name)
    pictures = data.Arrays(np.zeros([6, 3, 9, 9]), labels=[0, 1] * 3)
    assert Settings().on(pictures).layers == Settings(data="mine", kind="images").layers
    assert Settings(layers="256,256").on(pictures).layers == "256,256"


FEW_ROWS = {"layers": "32-skip", "patience": 30, "batch_size": 16, "weight_decay": 2.0}


def rows(count):
    drawn = torch.Generator().manual_seed(0)
    return data.Arrays(torch.randn(count, 3, generator=drawn), labels=[0, 1] * (count // 2))


@pytest.mark.parametrize(("count", "few"), [(200, True), (40, True), (4000, False)])
def test_few_rows_have_a_recipe_of_their_own_where_nothing_else_was_said(count, few):
    settings = Settings().on(rows(count))
    expected = {**FEW_ROWS, "patience": 30 if count > 100 else 0}  # 4 of 40 rows validate: they tell nothing
    assert all((getattr(settings, name) == value) is few for name, value in expected.items())
    chosen = Settings(layers="256,256", patience=0, batch_size=64, weight_decay=0.01).on(rows(count))
    assert {name: getattr(chosen, name) for name in expected} == {
        **{"layers": "256,256", "patience": 0},
        **{"batch_size": 64, "weight_decay": 0.01},
    }
    assert Settings(layers="16").on(rows(count)).weight_decay == 0.01  # the recipe is for its own layers
    assert settings.on(rows(4000)) == settings  # what was filled in stays
    pictures = data.Arrays(np.zeros([60, 3, 9, 9]), labels=[0, 1] * 30)
    assert Settings().on(pictures).layers == Settings(data="mine", kind="images").layers


def test_a_batch_is_as_large_as_was_said_of_the_run_or_of_the_data():
    samples = rows(200)
    assert Settings(batch_size=8).on(samples).batch_size == 8
    samples.batch_size = 10
    assert Settings().on(samples).batch_size == 10
    assert Settings(batch_size=8).on(samples).batch_size == 8


def test_a_run_on_few_rows_is_listed_without_what_is_usual_for_them(tmp_path):
    for name, said in (("usual", {}), ("other", {"patience": 3})):
        (tmp_path / name).mkdir()
        Settings(**said).on(rows(200)).write(tmp_path / name / "settings.yaml")
    assert {run.name: run.settings for run in results.list_runs(tmp_path)} == {
        "usual": "",
        "other": "patience 3",
    }


@pytest.mark.slow
def test_on_few_noisy_rows_a_network_is_no_worse_than_a_linear_model(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=drawn)
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0, 0, 0]) + torch.randn(300, generator=drawn)
    samples = data.Arrays(x, labels=y, task="regression")
    model, outcome = fit(Settings(), tmp_path / "run", samples=samples)
    assert outcome.error < 1.1 * linear(model, samples).error
    assert outcome.checkpoint.name == "best.ckpt"


def test_a_data_set_of_ones_own_is_one_by_its_shape(monkeypatch):
    class Mine(data.DataSet):
        shape, classes, sequential = (3,), 2, True

    class Frames(data.DataSet):
        shape, classes, sequential = (2, 8, 8), 2, True

    module = types.ModuleType("mine")
    module.Mine, module.Frames = Mine, Frames
    monkeypatch.setitem(sys.modules, "mine", module)
    assert Settings(data="mine:Mine").cell == "LIF"
    assert Settings(data="mine:Frames").cell == "IF"


def test_every_data_set_has_settings():
    for name in DATA_SETS:
        settings = Settings(data=name)
        assert all(getattr(settings, each) is not None for each in (*SERIES, "steps", "coding"))


def test_the_example_of_sequences_trains_what_hibana_train_does():
    """Parameter for parameter, by the same objective."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import sequences
    finally:
        sys.path.pop(0)
    for name in ("mnist-1d",):
        settings = Settings(data=name)
        made = data.load(name, steps=settings.steps)
        usual = architecture.build(
            settings.layers, made.shape, 10, settings.make_cell, readout_tau=settings.readout_tau
        )
        ours = sequences.network("spiking", *made.shape, 96, 10, settings.steps)
        ours.load_state_dict(dict(zip(ours.state_dict(), usual.state_dict().values(), strict=True)))
        inputs = torch.rand(settings.steps, 3, *made.shape)
        assert torch.equal(ours.eval()(inputs), usual.eval()(inputs))
        assert loss.named(settings.loss, settings.smoothing) == sequences.OBJECTIVE


def test_a_run_is_listed_with_what_is_not_usual_for_its_data(tmp_path):
    for number, (name, said) in enumerate(
        [("mnist-1d", {}), ("shd", {"cell": "ALIF"}), ("digits", {"tau": 3.0})]
    ):
        (tmp_path / str(number)).mkdir()
        Settings(data=name, **said).write(tmp_path / str(number) / "settings.yaml")
    assert {run.data: run.settings for run in results.list_runs(tmp_path)} == {
        "mnist-1d": "",
        "shd": "cell ALIF",
        "digits": "tau 3.0",
    }


def test_weights_decay_and_gains_and_time_constants_do_not():
    settings = Settings(data="mnist-1d", weight_decay=0.1, cell="PLIF")
    model = Classifier(settings, (1,), 10)
    model._trainer = types.SimpleNamespace(estimated_stepping_batches=5)
    optimizer = model.configure_optimizers()["optimizer"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in before.items() if p.ndim > 1}
    assert len(changed) == 4


def test_an_option_that_does_not_exist_is_answered_with_the_nearest():
    for name, near in (("lr", "learning_rate"), ("epoch", "epochs"), ("learning_rat", "learning_rate")):
        with pytest.raises(TypeError, match=f"there is no setting '{name}'; did you mean {near}?"):
            Settings(**{name: 1})


def test_options_for_reading_files_are_refused_for_samples_in_memory():
    with pytest.raises(ValueError, match="label must be passed to the samples, which are in memory"):
        Settings(label="a").on(rows(40))


def test_settings_are_copied_with_the_options_that_were_passed():
    settings = pickle.loads(pickle.dumps(copy.deepcopy(Settings(epochs=3))))
    assert settings == Settings(epochs=3)
    assert settings.explicit == {"epochs"}


def test_deprecated_names_are_the_new_ones():
    for old, new in train._RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"use hibana.train.{new}"):
            assert getattr(train, old) is getattr(train, new)
