"""Folders of trained networks: saving with a model card, loading without running code, and damaged files."""

import json
import math
import os
import random
import sys
import tomllib
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("safetensors", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

import huggingface_hub
import numpy
import pandas
import safetensors.torch

import hibana
from hibana import train
from hibana.cli import main
from hibana.runtime.extras import extra_for
from hibana.train import shared_folder

FROZEN = Path(__file__).with_name("pretrained")
"""A folder that version 0.1.0 wrote, and its network's outputs for the first test samples."""


def untrained(**settings):
    torch.manual_seed(0)
    options = train.Settings(**{"layers": "12", "steps": 4, "epochs": 1, **settings})
    samples = options.data_set
    return train.Network(options, samples.shape, samples.classes).eval()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """The path of a table in a folder named secret-home, which is not the working directory."""
    numbers = numpy.random.default_rng(0).normal(size=(60, 3))
    table = pandas.DataFrame(numbers, columns=["long", "wide", "old"])
    table["kind"] = numpy.where(table["long"] > 0, "tulip", "rose|`x`")
    table["height"] = table["long"] * 2 + table["wide"]
    (tmp_path / "secret-home").mkdir()
    table.to_csv(tmp_path / "secret-home" / "flowers.csv", index=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "secret-home" / "flowers.csv"


def fitted(flowers, **settings):
    chosen = {"label": "kind", "columns": "long,wide,old", "epochs": 2, "seed": 1, **settings}
    return train.fit(train.Settings(data=str(flowers), **chosen), "run")


def test_networks_of_the_package_need_the_extra_train_alone(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [package.split(">")[0] for package in project["project"]["optional-dependencies"]["train"]]
    assert "safetensors" in packages
    assert extra_for("safetensors") == "train"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hibana.pretrained("digits")(torch.zeros(2, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_loaded_network_equals_the_saved_one(flowers, task):
    label = "kind" if task == "classification" else "height"
    model, outcome = fitted(flowers, label=label)
    model.save_pretrained("shared")
    loaded = train.Network.from_pretrained("shared")
    expected, result = (train.predict(network, flowers) for network in (model, loaded))
    assert result == expected
    assert not loaded.training
    assert loaded.settings.readout_tau == math.inf
    assert train.predict("shared", flowers) == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert outcome.settings.data == str(flowers)
    assert sorted(path.name for path in Path("shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_rocket_for_series_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps, random = numpy.arange(40), numpy.random.default_rng(0)
    waves = [numpy.sin(steps * (0.2 + 0.2 * (n % 2)) + random.uniform(0, 6)) for n in range(30)]
    numpy.savez("waves.npz", x=numpy.stack(waves)[..., None], y=numpy.arange(30) % 2)
    settings = train.Settings(data="waves.npz", layers="rocket40")
    model, _ = train.fit(settings, "run")
    model.save_pretrained("shared")
    loaded = train.Network.from_pretrained("shared")
    assert train.predict(loaded, "waves.npz") == train.predict(model, "waves.npz")


def test_precision_and_time_constants_are_restored(tmp_path):
    model = untrained(layers="12w3-8", data="mnist-1d", precision="64-true", readout_tau=math.inf, tau=3.0)
    model.double().save_pretrained(tmp_path)
    loaded = train.Network.from_pretrained(tmp_path)
    assert loaded.settings == model.settings
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def test_a_folder_contains_no_paths_of_the_machine(flowers):
    test = flowers.with_name("others.csv")
    test.write_bytes(flowers.read_bytes())
    model, _ = fitted(flowers, test=str(test))
    model.save_pretrained("shared")
    for path in Path("shared").iterdir():
        assert b"secret-home" not in path.read_bytes(), path
    settings = json.loads(Path("shared/config.json").read_text())["settings"]
    assert (settings["data"], settings["test"]) == ("./flowers.csv", "./others.csv")
    assert "root" not in settings
    assert train.Network.from_pretrained("shared").settings.data == str(Path("flowers.csv").absolute())


def test_samples_in_memory_have_no_path():
    settings = train.Settings(data="in memory", kind="arrays")
    assert shared_folder._portable(settings)["data"] == "in memory"


def test_a_card_states_the_results_of_the_run(flowers):
    model, outcome = fitted(flowers)
    model.save_pretrained("shared")
    card = Path("shared/README.md").read_text()
    assert card.startswith("---\nlibrary_name: hibana\ntags:\n- hibana\n")
    assert f"| accuracy | {outcome.accuracy:.1%} right, on its test part |" in card
    (rate,) = outcome.rates.values()
    assert f"{rate:.1%} (spikes per neuron and step) |" in card
    assert "| answers | 2 classes |" in card
    assert 'from_pretrained("shared")' in card
    loaded = train.load("run")
    assert loaded.result == model.result
    Path("run/result.json").write_text("[]")
    assert train.load("run").result is None


def test_an_existing_card_stays(tmp_path):
    (tmp_path / "README.md").write_text("# All mine\n")
    with pytest.warns(DeprecationWarning, match="samples is deprecated"):
        untrained().save_pretrained(tmp_path, samples=train.Settings().samples())
    assert (tmp_path / "README.md").read_text() == "# All mine\n"


def change_config(folder, **changes):
    """Changes entries of the configuration in `folder`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    settings = {**config["settings"], **changes.pop("settings", {})}
    path.write_text(json.dumps({**config, "settings": settings, **changes}))


def refusal(folder, **options):
    """The one-line message of the error with which `folder` is refused."""
    with pytest.raises(ValueError, match=r".") as error:
        train.Network.from_pretrained(folder, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, f"it is of version '{hibana.__version__}' and has format 2, which"),
        ({"settings": {"telepathy": 3}}, "holds other settings: there is no setting 'telepathy'"),
        ({"settings": {"epochs": "many"}}, "holds other settings: epochs must be of type int"),
        ({"settings": {"layers": "99999999"}}, "layers must have at most"),
        ({"settings": {"layers": "10"}}, "holds something else"),
        ({"settings": {"kind": "table"}}, "does not describe how its inputs are read"),
        ({"settings": {"data": "mnist"}}, "is of other inputs than mnist"),
        ({"shape": [8, 9]}, "is of other inputs than digits"),
        ({"classes": 11}, "is of other inputs than digits"),
        ({"classes": "10"}, "config.json can't be read: it must have format"),
        (
            {"description": {"kind": "table"}},
            "something else: a description must have a kind, inputs and a target",
        ),
        (
            {"weights_sha256": "0" * 64},
            "model.safetensors can't be read: they were changed since they were written",
        ),
    ],
)
def test_a_configuration_with_wrong_entries_is_refused(tmp_path, changes, message):
    untrained().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json can't be read: Expecting value"),
        ("[" * 100_000, "config.json can't be read: maximum recursion"),
        ("[1, 2]", "config.json can't be read: it must have format"),
    ],
)
def test_an_invalid_configuration_file_is_refused(tmp_path, text, message):
    untrained().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert message in refusal(tmp_path)


def replace_weights(folder, raw):
    """Replaces the weights in `folder` by the file contents `raw`, and their digest in the configuration."""
    import hashlib

    (folder / "model.safetensors").write_bytes(raw)
    change_config(folder, weights_sha256=hashlib.sha256(raw).hexdigest())


def header(text, numbers=b""):
    return len(text).to_bytes(8, "little") + text + numbers


NOT_WEIGHTS = "model.safetensors can't be read: Error while deserializing"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", NOT_WEIGHTS),
        (b"\x80\x02cos\nsystem\n(S'true'\ntR.", NOT_WEIGHTS),
        ((1 << 60).to_bytes(8, "little") + b"{}", NOT_WEIGHTS),
        (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"), "something else"),
        (header(b"{}"), "layers must have at most 0 weights"),
    ],
)
def test_invalid_weights_are_refused(tmp_path, raw, message):
    untrained().save_pretrained(tmp_path)
    replace_weights(tmp_path, raw)
    assert message in refusal(tmp_path)


def test_each_flipped_bit_of_the_weights_is_refused(tmp_path):
    untrained().save_pretrained(tmp_path)
    path, draws = tmp_path / "model.safetensors", random.Random(0)
    raw = path.read_bytes()
    for position in [*range(0, 60, 6), *(draws.randrange(len(raw)) for _ in range(20))]:
        other = bytearray(raw)
        other[position] ^= 1 << draws.randrange(8)
        path.write_bytes(other)
        assert "they were changed since they were written" in refusal(tmp_path)


def test_share_overwrites_only_its_own_folders(tmp_path, capsys):
    untrained().save_pretrained(tmp_path / "network")
    other = tmp_path / "other"
    other.mkdir()
    share = ["share", str(tmp_path / "network")]
    (other / "config.json").write_text('{"mine": 1}')
    assert main([*share, str(other)]) == 2
    assert "folder must be empty or one that hibana share wrote" in capsys.readouterr().err
    assert (other / "config.json").read_text() == '{"mine": 1}'
    assert [main([*share, str(other), *option]) for option in (["--overwrite"], [])] == [0, 0]
    (tmp_path / "runs" / "digits-0").mkdir(parents=True)
    train.Settings().write(tmp_path / "runs" / "digits-0" / "settings.yaml")
    for runs in ("runs", "runs/digits-0"):
        assert main([*share, str(tmp_path / runs), "--overwrite"]) == 2
        assert "must not hold runs of hibana train" in capsys.readouterr().err
        assert not (tmp_path / runs / "config.json").exists()


def test_missing_files_are_refused(tmp_path):
    assert "has no config.json" in refusal(tmp_path)
    assert "there is no folder ./nowhere" in refusal("./nowhere")
    untrained().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors can't be read: No such file" in refusal(tmp_path)
    assert main(["predict", str(tmp_path)]) == 2
    with pytest.raises(ValueError, match="holds no run of hibana train"):
        train.resume_settings(tmp_path)


def test_a_function_named_in_a_folder_runs_only_if_trusted(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'trace')!r}).touch()\n"
        "from torch import nn\nimport hibana as hb\n"
        "def net(shape, classes, cell):\n"
        "    hidden = nn.Flatten(2), nn.Linear(64, 12), hb.IF()\n"
        "    return nn.Sequential(*hidden, nn.Linear(12, classes), hb.LI())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = untrained()
    model.save_pretrained(tmp_path / "folder")
    change_config(tmp_path / "folder", settings={"layers": "theirs:net"})
    assert "names a function to run, 'theirs:net'" in refusal(tmp_path / "folder")
    assert "'theirs:net'" in refusal(tmp_path / "folder", trust=["theirs:other"])
    assert not (tmp_path / "trace").exists()
    weights = {f"net.{name}": value for name, value in _trusted_network().state_dict().items()}
    replace_weights(tmp_path / "folder", safetensors.torch.save(weights))
    network = train.Network.from_pretrained(tmp_path / "folder", trust=["theirs:net"])
    assert network.settings.layers == "theirs:net"
    sys.modules.pop("theirs", None)


def _trusted_network():
    from torch import nn

    import hibana as hb

    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 12), hb.IF(), nn.Linear(12, 10), hb.LI())


def test_a_folder_of_an_earlier_version_is_loaded():
    model = train.Network.from_pretrained(FROZEN)
    expected = json.loads((FROZEN / "answers.json").read_text())
    samples = train.Settings().samples()
    samples.setup()
    with torch.inference_mode():
        scores = model(samples.test.inputs[: len(expected)])
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.fixture
def hub_calls(tmp_path, monkeypatch):
    """The recorded calls of ``huggingface_hub.snapshot_download``, replaced by a local folder ``hub``."""
    calls = []

    def snapshot(repo_id, **options):
        calls.append((repo_id, options))
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_network_is_loaded_from_the_hub(hub_calls):
    model = untrained()
    model.save_pretrained("hub/me/digits")
    loaded = train.Network.from_pretrained("me/digits", revision="v1", local_files_only=True)
    inputs = torch.rand(5, 8, 8)
    assert torch.equal(loaded(inputs), model(inputs))
    options = {"revision": "v1", "local_files_only": True}
    assert hub_calls == [("me/digits", {"allow_patterns": ["config.json", "model.safetensors"], **options})]


def test_names_that_are_invalid_on_the_hub_are_not_requested(hub_calls):
    for name in ("../me", "me/digits/more", "me digits", "/me", "-me/digits"):
        assert "name must be a folder, or USER/NAME on the Hub" in refusal(name)
    assert hub_calls == []


def test_the_command_share_writes_a_folder_for_other_commands(flowers, capsys):
    os.chdir(flowers.parents[1] / "elsewhere")
    fitted(flowers)
    assert main(["share", "run", "shared"]) == 0
    assert capsys.readouterr().out.split() == ["shared"]
    answers = []
    for checkpoint in ("run", "shared"):
        assert main(["predict", checkpoint, str(flowers), "--csv"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 61
    assert main(["convert", "shared", "net.nir"]) == 0
    flowers.unlink()
    assert main(["share", "shared", "again"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "there"], "No such file or directory"),
        (["{folder}"], "parameter FOLDER requires an argument"),
        (["{folder}", "{folder}/config.json"], "File exists: '{folder}/config.json'"),
    ],
)
def test_the_command_refuses_with_a_one_line_error(tmp_path, capsys, arguments, message):
    untrained().save_pretrained(tmp_path)
    assert main(["share", *(argument.format(folder=tmp_path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message.format(folder=tmp_path) in err
