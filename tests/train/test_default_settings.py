"""Defaults of settings that depend on the data: recipes for sequences, pictures, events and few rows."""

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
def test_sequences_share_defaults_that_differ_from_all_other_data(name):
    (default,) = {getattr(Settings(data=data_set), name) for data_set in SEQUENCES}
    assert default not in {getattr(Settings(data=data_set), name) for data_set in OTHERS}


def test_explicit_options_override_defaults():
    options = {"layers": "8r", "loss": "rate", "smoothing": 0.0, "start_rate": 0.0, "readout_tau": 3.0}
    settings = Settings(data="mnist-1d", cell="ALIF", **options)
    assert {name: getattr(settings, name) for name in options} == options
    assert settings.cell == "ALIF"


@pytest.mark.parametrize("steps", [1, 2, 11, 12, 27, 28, 40, 83, 84, 196, 1000])
def test_windows_cover_as_many_steps_of_a_sequence_as_possible(steps):
    net = architecture.build(
        Settings(data="shd", steps=steps).layers, (1,), 2, Settings(data="shd").make_cell
    )
    windows = [layer for layer in net if hasattr(layer, "reach")]
    first, second, third = (window.dilation for window in windows)
    assert (first, third) == (1, second**2)
    reach = [4 * (1 + d + d * d) for d in (second, second + 1)]
    assert reach[0] <= max(12, steps) < max(13, reach[1])


def test_the_default_cell_depends_on_the_kind_of_data(tmp_path):
    for kind, cell in (("sequences", "LIF"), ("arrays", "IF")):
        assert Settings(data=str(tmp_path), kind=kind).cell == cell


def test_users_pictures_and_recordings_get_convolutions(tmp_path):
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
def test_arrays_are_pictures_depending_on_shape_and_type(tmp_path, shape, dtype, kind, names):
    layers = Settings(data="mine", kind=kind).layers
    inputs, labels = np.zeros([6, *shape], dtype), np.array(["a", "b"] * 3)
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (inputs, labels), strict=True)))
    np.savez_compressed(tmp_path / "compressed.npz", **dict(zip(names, (inputs, labels), strict=True)))
    (tmp_path / "folder").mkdir()
    for name, array in zip(names, (inputs, labels), strict=True):
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for source in ("mine.npz", "compressed.npz", "folder"):
        assert Settings(data=str(tmp_path / source)).layers == layers
    (tmp_path / "broken.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:200])
    assert Settings(data=str(tmp_path / "broken.npz")).layers == "256,256"


def test_data_in_memory_get_the_same_defaults_as_files(tmp_path):
    random = np.random.default_rng(0)
    frames = [random.random((length, 3)) for length in range(10, 34)]
    series = data.Sequences(frames, labels=["even", "odd"] * 12, steps=16)
    chosen = Settings(epochs=1, cell="ALIF", batch_size=8)
    _, outcome = fit(chosen, tmp_path / "run", samples=series)
    defaults = Settings(data="mine", kind="sequences", steps=16)
    assert outcome.settings.cell == "ALIF"
    for name in (*SERIES, "epochs"):
        is_explicit = name in ("cell", "epochs", "batch_size")
        assert is_explicit or getattr(outcome.settings, name) == getattr(defaults, name)
    pictures = data.Arrays(np.zeros([6, 3, 9, 9]), labels=[0, 1] * 3)
    assert Settings().on(pictures).layers == Settings(data="mine", kind="images").layers
    assert Settings(layers="256,256").on(pictures).layers == "256,256"


FEW_ROWS = {"layers": "32-skip", "patience": 30, "batch_size": 16, "weight_decay": 2.0}


def rows(count):
    generator = torch.Generator().manual_seed(0)
    return data.Arrays(torch.randn(count, 3, generator=generator), labels=[0, 1] * (count // 2))


@pytest.mark.parametrize(("count", "few"), [(200, True), (40, True), (4000, False)])
def test_few_rows_have_a_recipe_for_settings_that_are_not_explicit(count, few):
    settings = Settings().on(rows(count))
    expected = {**FEW_ROWS, "patience": 30 if count > 100 else 0}  # 4 validation rows of 40 are too few
    assert all((getattr(settings, name) == value) is few for name, value in expected.items())
    chosen = Settings(layers="256,256", patience=0, batch_size=64, weight_decay=0.01).on(rows(count))
    assert {name: getattr(chosen, name) for name in expected} == {
        **{"layers": "256,256", "patience": 0},
        **{"batch_size": 64, "weight_decay": 0.01},
    }
    assert Settings(layers="16").on(rows(count)).weight_decay == 0.01  # the recipe is for its own layers
    assert settings.on(rows(4000)) == settings  # settings stay as chosen for the first data
    pictures = data.Arrays(np.zeros([60, 3, 9, 9]), labels=[0, 1] * 30)
    assert Settings().on(pictures).layers == Settings(data="mine", kind="images").layers


def test_the_batch_size_is_that_of_the_run_or_else_of_the_data():
    samples = rows(200)
    assert Settings(batch_size=8).on(samples).batch_size == 8
    samples.batch_size = 10
    assert Settings().on(samples).batch_size == 10
    assert Settings(batch_size=8).on(samples).batch_size == 8


def test_a_run_on_few_rows_is_listed_without_their_defaults(tmp_path):
    for name, options in (("usual", {}), ("other", {"patience": 3})):
        (tmp_path / name).mkdir()
        Settings(**options).on(rows(200)).write(tmp_path / name / "settings.yaml")
    assert {run.name: run.settings for run in results.list_runs(tmp_path)} == {
        "usual": "",
        "other": "patience 3",
    }


@pytest.mark.slow
def test_on_few_noisy_rows_a_network_is_no_worse_than_a_linear_model(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0, 0, 0]) + torch.randn(300, generator=generator)
    samples = data.Arrays(x, labels=y, task="regression")
    model, outcome = fit(Settings(), tmp_path / "run", samples=samples)
    assert outcome.error < 1.1 * linear(model, samples).error
    assert outcome.checkpoint.name == "best.ckpt"


def test_defaults_of_a_users_data_set_depend_on_its_shape(monkeypatch):
    class Series(data.DataSet):
        shape, classes, sequential = (3,), 2, True

    class Frames(data.DataSet):
        shape, classes, sequential = (2, 8, 8), 2, True

    module = types.ModuleType("mine")
    module.Series, module.Frames = Series, Frames
    monkeypatch.setitem(sys.modules, "mine", module)
    assert Settings(data="mine:Series").cell == "LIF"
    assert Settings(data="mine:Frames").cell == "IF"


def test_every_data_set_has_settings():
    for data_set in DATA_SETS:
        settings = Settings(data=data_set)
        assert all(getattr(settings, name) is not None for name in (*SERIES, "steps", "coding"))


def test_the_example_of_sequences_uses_the_network_of_hibana_train():
    """The same parameters, outputs and objective."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import sequences
    finally:
        sys.path.pop(0)
    for name in ("mnist-1d",):
        settings = Settings(data=name)
        samples = data.load(name, steps=settings.steps)
        default = architecture.build(
            settings.layers, samples.shape, 10, settings.make_cell, readout_tau=settings.readout_tau
        )
        network = sequences.network("spiking", *samples.shape, 96, 10, settings.steps)
        network.load_state_dict(dict(zip(network.state_dict(), default.state_dict().values(), strict=True)))
        inputs = torch.rand(settings.steps, 3, *samples.shape)
        assert torch.equal(network.eval()(inputs), default.eval()(inputs))
        assert loss.named(settings.loss, settings.smoothing) == sequences.OBJECTIVE


def test_a_run_is_listed_with_options_that_differ_from_the_defaults(tmp_path):
    for number, (name, options) in enumerate(
        [("mnist-1d", {}), ("shd", {"cell": "ALIF"}), ("digits", {"tau": 3.0})]
    ):
        (tmp_path / str(number)).mkdir()
        Settings(data=name, **options).write(tmp_path / str(number) / "settings.yaml")
    assert {run.data: run.settings for run in results.list_runs(tmp_path)} == {
        "mnist-1d": "",
        "shd": "cell ALIF",
        "digits": "tau 3.0",
    }


def test_weight_decay_excludes_gains_and_time_constants():
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


def test_an_unknown_option_raises_an_error_that_names_the_nearest():
    for name, nearest in (("lr", "learning_rate"), ("epoch", "epochs"), ("learning_rat", "learning_rate")):
        with pytest.raises(TypeError, match=f"there is no setting '{name}'; did you mean {nearest}?"):
            Settings(**{name: 1})


def test_options_for_reading_files_are_refused_for_samples_in_memory():
    with pytest.raises(ValueError, match="label must be passed to the samples, which are in memory"):
        Settings(label="a").on(rows(40))


def test_settings_are_copied_with_the_options_that_were_passed():
    settings = pickle.loads(pickle.dumps(copy.deepcopy(Settings(epochs=3))))
    assert settings == Settings(epochs=3)
    assert settings.explicit == {"epochs"}


def test_deprecated_names_return_the_renamed_objects():
    for old, new in train._RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"use hibana.train.{new}"):
            assert getattr(train, old) is getattr(train, new)
