"""Folders of trained networks: opened as they were saved, with a card; nothing in them runs."""

import json
import math
import os
import sys
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

FROZEN = Path(__file__).with_name("pretrained")
"""A folder that version 0.1.0 wrote, and what its network answers to the first test samples."""


def untrained(**settings):
    torch.manual_seed(0)
    made = train.Settings(**{"layers": "12", "steps": 4, "epochs": 1, **settings})
    samples = made.data_set
    return train.Network(made, samples.shape, samples.classes).eval()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A table in a folder with a name of its own, which the working directory is not."""
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


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_network_is_opened_as_it_was_saved(flowers, task):
    label = "kind" if task == "classification" else "height"
    model, outcome = fitted(flowers, label=label)
    model.save_pretrained("shared")
    again = train.Network.from_pretrained("shared")
    expected, found = (train.predict(each, flowers) for each in (model, again))
    assert found == expected
    assert not again.training
    assert again.settings.readout_tau == math.inf
    assert train.predict("shared", flowers) == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert outcome.settings.data == str(flowers)
    assert sorted(each.name for each in Path("shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_series_that_a_rocket_reads_are_opened_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps, drawn = numpy.arange(40), numpy.random.default_rng(0)
    waves = [numpy.sin(steps * (0.2 + 0.2 * (n % 2)) + drawn.uniform(0, 6)) for n in range(30)]
    numpy.savez("waves.npz", x=numpy.stack(waves)[..., None], y=numpy.arange(30) % 2)
    settings = train.Settings(data="waves.npz", layers="rocket40")
    model, _ = train.fit(settings, "run")
    model.save_pretrained("shared")
    again = train.Network.from_pretrained("shared")
    assert train.predict(again, "waves.npz") == train.predict(model, "waves.npz")


def test_precision_and_time_constants_come_back(tmp_path):
    model = untrained(layers="12w3-8", data="mnist-1d", precision="64-true", readout_tau=math.inf, tau=3.0)
    model.double().save_pretrained(tmp_path)
    again = train.Network.from_pretrained(tmp_path)
    assert again.settings == model.settings
    assert {value.dtype for value in again.parameters()} == {torch.float32}


def test_nothing_of_the_machine_is_in_a_folder(flowers):
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


def test_a_card_says_what_the_run_came_to(flowers):
    model, outcome = fitted(flowers)
    model.save_pretrained("shared")
    written = Path("shared/README.md").read_text()
    assert written.startswith("---\nlibrary_name: hibana\ntags:\n- hibana\n")
    assert f"| accuracy | {outcome.accuracy:.1%} right, on its test part |" in written
    (rate,) = outcome.rates.values()
    assert f"{rate:.1%} (spikes per neuron and step) |" in written
    assert "| answers | 2 classes |" in written
    assert 'from_pretrained("shared")' in written
    again = train.load("run")
    assert again.result == model.result
    Path("run/result.json").write_text("[]")
    assert train.load("run").result is None


def test_an_existing_card_stays(tmp_path):
    (tmp_path / "README.md").write_text("# All mine\n")
    with pytest.warns(DeprecationWarning, match="samples is deprecated"):
        untrained().save_pretrained(tmp_path, samples=train.Settings().samples())
    assert (tmp_path / "README.md").read_text() == "# All mine\n"


def damaged(folder, **changes):
    """Writes the configuration in `folder` with other entries."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    settings = {**config["settings"], **changes.pop("settings", {})}
    path.write_text(json.dumps({**config, "settings": settings, **changes}))


def said(folder, **options):
    """The one line that `folder` is refused with."""
    with pytest.raises(ValueError, match=r".") as refusal:
        train.Network.from_pretrained(folder, **options)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


@pytest.mark.parametrize(
    ("changes", "words"),
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
def test_a_configuration_that_says_something_else_is_refused(tmp_path, changes, words):
    untrained().save_pretrained(tmp_path)
    damaged(tmp_path, **changes)
    assert words in said(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "config.json can't be read: Expecting value"),
        ("[" * 100_000, "config.json can't be read: maximum recursion"),
        ("[1, 2]", "config.json can't be read: it must have format"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, text, words):
    untrained().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert words in said(tmp_path)


def signed(folder, raw):
    """Puts other weights into `folder`, and their digest into its configuration."""
    import hashlib

    (folder / "model.safetensors").write_bytes(raw)
    damaged(folder, weights_sha256=hashlib.sha256(raw).hexdigest())


def header(text, numbers=b""):
    return len(text).to_bytes(8, "little") + text + numbers


NOT_WEIGHTS = "model.safetensors can't be read: Error while deserializing"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", NOT_WEIGHTS),
        (b"\x80\x02cos\nsystem\n(S'true'\ntR.", NOT_WEIGHTS),
        ((1 << 60).to_bytes(8, "little") + b"{}", NOT_WEIGHTS),
        (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"), "something else"),
        (header(b"{}"), "layers must have at most 0 weights"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path, raw, words):
    untrained().save_pretrained(tmp_path)
    signed(tmp_path, raw)
    assert words in said(tmp_path)


def test_share_writes_over_nothing_but_what_it_wrote(tmp_path, capsys):
    untrained().save_pretrained(tmp_path / "network")
    other = tmp_path / "other"
    other.mkdir()
    share = ["share", str(tmp_path / "network")]
    (other / "config.json").write_text('{"mine": 1}')
    assert main([*share, str(other)]) == 2
    assert "folder must be empty or one that hibana share wrote" in capsys.readouterr().err
    assert (other / "config.json").read_text() == '{"mine": 1}'
    assert [main([*share, str(other), *more]) for more in (["--overwrite"], [])] == [0, 0]
    (tmp_path / "runs" / "digits-0").mkdir(parents=True)
    train.Settings().write(tmp_path / "runs" / "digits-0" / "settings.yaml")
    for runs in ("runs", "runs/digits-0"):
        assert main([*share, str(tmp_path / runs), "--overwrite"]) == 2
        assert "must not hold runs of hibana train" in capsys.readouterr().err
        assert not (tmp_path / runs / "config.json").exists()


def test_files_that_are_missing_or_no_files_are_refused(tmp_path):
    assert "has no config.json" in said(tmp_path)
    assert "there is no folder ./nowhere" in said("./nowhere")
    untrained().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors can't be read: No such file" in said(tmp_path)
    assert main(["predict", str(tmp_path)]) == 2
    with pytest.raises(ValueError, match="holds no run of hibana train"):
        train.resume_settings(tmp_path)


def test_a_folder_names_no_function_that_is_run_unasked(tmp_path, monkeypatch):
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
    damaged(tmp_path / "folder", settings={"layers": "theirs:net"})
    assert "names a function to run, 'theirs:net'" in said(tmp_path / "folder")
    assert "'theirs:net'" in said(tmp_path / "folder", trust=["theirs:other"])
    assert not (tmp_path / "trace").exists()
    weights = {f"net.{name}": value for name, value in _theirs().state_dict().items()}
    signed(tmp_path / "folder", safetensors.torch.save(weights))
    opened = train.Network.from_pretrained(tmp_path / "folder", trust=["theirs:net"])
    assert opened.settings.layers == "theirs:net"
    sys.modules.pop("theirs", None)


def _theirs():
    from torch import nn

    import hibana as hb

    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 12), hb.IF(), nn.Linear(12, 10), hb.LI())


def test_what_a_version_before_wrote_is_opened():
    model = train.Network.from_pretrained(FROZEN)
    expected = json.loads((FROZEN / "answers.json").read_text())
    samples = train.Settings().samples()
    samples.setup()
    with torch.inference_mode():
        scores = model(samples.test.inputs[: len(expected)])
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Calls of ``huggingface_hub.snapshot_download``, which finds repositories in a folder."""
    calls = []

    def snapshot(repo_id, **options):
        calls.append((repo_id, options))
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_network_comes_from_the_hub(fetched):
    model = untrained()
    model.save_pretrained("hub/me/digits")
    again = train.Network.from_pretrained("me/digits", revision="v1", local_files_only=True)
    inputs = torch.rand(5, 8, 8)
    assert torch.equal(again(inputs), model(inputs))
    options = {"revision": "v1", "local_files_only": True}
    assert fetched == [("me/digits", {"allow_patterns": ["config.json", "model.safetensors"], **options})]


def test_names_that_the_hub_can_t_have_are_not_asked_for(fetched):
    for name in ("../me", "me/digits/more", "me digits", "/me", "-me/digits"):
        assert "name must be a folder, or USER/NAME on the Hub" in said(name)
    assert fetched == []


def test_the_command_shares_and_others_use_the_folder(flowers, capsys):
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
    ("arguments", "words"),
    [
        (["nowhere", "there"], "No such file or directory"),
        (["{folder}"], "parameter FOLDER requires an argument"),
        (["{folder}", "{folder}/config.json"], "File exists: '{folder}/config.json'"),
    ],
)
def test_the_command_refuses_in_a_sentence(tmp_path, capsys, arguments, words):
    untrained().save_pretrained(tmp_path)
    assert main(["share", *(each.format(folder=tmp_path) for each in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words.format(folder=tmp_path) in err
