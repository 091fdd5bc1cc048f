"""Untrusted or damaged checkpoints, settings and arrays: no code in them runs, and errors are one line."""

import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import hibana as hb
from hibana.cli import main

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import train
from hibana.data.user_data.arrays import read_numbers
from hibana.train import checkpoint


def content(**changes):
    """The contents of a checkpoint of an untrained network."""
    torch.manual_seed(0)
    settings = train.Settings(**{"layers": "12", "steps": 4, "epochs": 1})
    model = train.Classifier(settings, (8, 8), 10)
    hyper = {**model.hparams, **changes}
    states = {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {}}
    return {
        **{"epoch": 0, "global_step": 1, **states},
        **{"hyper_parameters": hyper, "state_dict": model.state_dict()},
    }


@pytest.fixture
def untrusted(tmp_path, monkeypatch):
    """A folder on the path with a module stranger, which creates a file `trace` when it is imported."""
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "import hibana as hb\n"
        f"Path({str(tmp_path / 'trace')!r}).touch()\n"
        "def net(shape, classes, cell):\n"
        "    assert [*map(type, shape), type(shape), type(classes)] == [int, int, tuple, int]\n"
        "    hidden = nn.Flatten(2), nn.Linear(64, 12), hb.OverTime(cell())\n"
        "    return nn.Sequential(*hidden, nn.Linear(12, classes), hb.LI())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("stranger", None)


def refusal(capsys, *arguments):
    """The one-line error message with which `hibana` refuses `arguments`."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert len(err) < 1000
    return err


def test_a_function_named_in_a_checkpoint_runs_only_if_trusted(untrusted, capsys):
    from hibana.cli.play.network import TrainedNetwork

    path = untrusted / "hostile.ckpt"
    checkpoint.write(content(layers="stranger:net"), path)
    for command in (["predict"], ["train", "--resume"]):
        assert "'stranger:net'" in refusal(capsys, *command, path)
        assert "'stranger:net'" in refusal(capsys, *command, path, "--trust", "stranger:other")
    assert "'stranger:net'" in refusal(capsys, "convert", path, untrusted / "net.pt2")
    with pytest.raises(ValueError, match="'stranger:net'"):
        TrainedNetwork(str(path))
    with pytest.raises(ValueError, match=r"'stranger:net'.*--trust stranger:net"):
        train.load(path)
    with pytest.raises(ValueError, match="'stranger:net'"):
        train.resume_settings(path)
    assert not (untrusted / "trace").exists()


def test_a_trusted_function_receives_only_plain_numbers(untrusted, capsys):
    path = untrusted / "theirs.ckpt"
    network = nn.Sequential(nn.Flatten(2), nn.Linear(64, 12), hb.IF(), nn.Linear(12, 10), hb.LI())
    state = {f"net.{name}": value for name, value in network.state_dict().items()}
    checkpoint.write({**content(layers="stranger:net"), "state_dict": state}, path)
    assert train.load(path, trust=["stranger:net"]).settings.layers == "stranger:net"
    assert main(["predict", str(path), "--trust", "stranger:net"]) == 0
    capsys.readouterr()
    for shape, classes in ((["sh", "-c"], 10), ([8, 8], "10"), ([8, 9], 10), ([8, 8], True)):
        crafted = content(layers="stranger:net", shape=shape, classes=classes)
        checkpoint.write({**crafted, "state_dict": state}, path)
        (untrusted / "trace").unlink(missing_ok=True)
        sys.modules.pop("stranger", None)
        with pytest.raises(ValueError, match="of other inputs than digits"):
            train.load(path, trust=["stranger:net"])
        assert not (untrusted / "trace").exists()


@pytest.mark.slow
def test_a_function_named_in_settings_runs_only_if_trusted(untrusted, capsys):
    (untrusted / "theirs.yaml").write_text("layers: stranger:net\nepochs: 1\n")
    options = ["train", "--settings", "theirs.yaml", "--out", "run"]
    assert "'stranger:net'" in refusal(capsys, *options)
    assert not (untrusted / "trace").exists()
    assert not (untrusted / "run").exists()
    assert train.read(untrusted / "theirs.yaml", trust=["stranger:net"]).layers == "stranger:net"
    assert train.read(untrusted / "theirs.yaml", layers="12").layers == "12"
    assert main([*options, "--trust", "stranger:net"]) == 0
    assert main(["train", "--layers", "stranger:net", "--epochs", "1", "--out", "typed"]) == 0
    capsys.readouterr()
    assert "'stranger:net'" in refusal(capsys, "train", "--resume", "typed")


def test_each_flipped_bit_of_a_checkpoint_is_refused(tmp_path):
    original, flipped = tmp_path / "original.ckpt", tmp_path / "flipped.ckpt"
    checkpoint.write(content(), original)
    assert train.load(original).settings.layers == "12"
    assert torch.load(original, weights_only=True)["epoch"] == 0
    raw, rng = original.read_bytes(), random.Random(0)
    ends = [*range(200), *range(len(raw) - 400, len(raw))]
    for byte in [*ends, *(rng.randrange(len(raw)) for _ in range(400))]:
        other = bytearray(raw)
        other[byte] ^= 1 << rng.randrange(8)
        flipped.write_bytes(other)
        with pytest.raises(ValueError, match=r"was changed since it was written|does not end with a digest"):
            train.load(flipped)
    for length in [*range(100), *(rng.randrange(len(raw)) for _ in range(100)), len(raw) - 1]:
        flipped.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"was changed since it was written|does not end with a digest"):
            train.load(flipped)


def test_checkpoints_of_version_0_2_0_are_read(tmp_path):
    """The checkpoint was trained with ``hibana train --layers 4 --epochs 10 --steps 4``."""
    path = Path(__file__).with_name("version-0.2.0.ckpt")
    model = train.load(path)
    assert model.settings == train.Settings(layers="4", epochs=10, steps=4)
    samples = model.settings.samples()
    samples.prepare_data()
    samples.setup()
    scores = torch.cat([model(inputs) for inputs, _ in samples.test_dataloader()])
    correct = scores.argmax(1) == torch.cat([labels for _, labels in samples.test_dataloader()])
    assert correct.float().mean().item() == pytest.approx(0.161111)
    settings, resumed = train.resume_settings(path)
    _, outcome = train.fit(replace(settings, epochs=11), tmp_path / "run", resume=resumed)
    assert len(outcome.history["training/loss"]) == 11


def test_a_network_trained_with_augmentations_of_earlier_versions_opens_and_does_not_resume(tmp_path):
    checkpoint.write(content(augment="shift-drop-mix"), tmp_path / "earlier.ckpt")
    assert train.load(tmp_path / "earlier.ckpt").settings.augment == "shift"
    with pytest.raises(ValueError, match="augment must be one of none, flip, shift, roll; got 'drop'"):
        train.resume_settings(tmp_path / "earlier.ckpt")


class CreatesFile:
    """Creates `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_calls_a_function_is_refused_and_calls_nothing(tmp_path):
    path = tmp_path / "crafted.ckpt"
    call = CreatesFile(tmp_path / "trace")
    for hostile in ({**content(), "callbacks": {"a": call}}, call):
        checkpoint.write(hostile, path)
        for load in (train.load, train.resume_settings):
            with pytest.raises(ValueError, match="holds more than tensors and plain values"):
                load(path)
    assert not (tmp_path / "trace").exists()
    checkpoint.write([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        train.load(path)


def test_a_checkpoint_of_a_larger_network_than_its_weights_is_refused(tmp_path):
    for layers in ("99999999", "90000r", "64-99999999", "9999c7-p2"):
        checkpoint.write(content(layers=layers), tmp_path / "large.ckpt")
        with pytest.raises(ValueError, match=r"layers must have at most .* weights together"):
            train.load(tmp_path / "large.ckpt")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "epochs: *j\n", "there is no setting 'a'"),
        ("epochs: " + "[" * 20_000, "can't be read: maximum recursion"),
        ("layers: " + "1" * 70_000, "can't be read: it must have at most 65,536 bytes"),
        ("layers: [" + "1, " * 10_000 + "1]", "layers must be of type str, got .1, 1, 1"),
        ("epochs: " + "9" * 4_000, "epochs must be at least 0 and below 2.31, got 9*[.]{3}9*$"),
        ("epochs: " + "9" * 6_000, "can't be read: Exceeds the limit"),
        ("epochs: !!python/object/apply:os.system [ls]", "can't be read: could not determine a constructor"),
        ("epochs: 2024-99-99", "can't be read: month must be in 1..12"),
        ("x" * 900 + ": 3", "there is no setting"),
        ("data: " + "x" * 60_000, "data must be one of"),
    ],
)
def test_huge_settings_raise_a_short_error(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        train.read(tmp_path / "run.yaml")
    assert len(str(refusal.value)) < 700
    assert "\n" not in str(refusal.value)


def test_truncated_settings_are_refused(tmp_path):
    path, settings = tmp_path / "settings.yaml", train.Settings(epochs=3, layers="12-12r")
    settings.write(path)
    content = path.read_bytes()
    assert content.endswith(b"\n")
    for length in range(len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"it is truncated|must hold names and values"):
            train.read(path)
    path.write_bytes(content[:-1])
    assert train.read(path) == settings


@pytest.mark.parametrize("first_line", [True, False])
def test_two_values_under_one_name_are_refused(first_line, tmp_path):
    path = tmp_path / "settings.yaml"
    train.Settings(epochs=3).write(path)
    text = path.read_text().replace("seed: 0\n", "seed: 0\nepochs: 40\n")
    path.write_text(text if first_line else text.partition("\n")[2])
    with pytest.raises(ValueError, match="it has two values under the name 'epochs'; remove one"):
        train.read(path)


def test_settings_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "settings.yaml"
    for first, last in (
        ("# Settings of a hibana run: digits-0 1f\n", f"# End of these settings: {'0' * 64}\n"),
        ("# Settings of a hibana run\n", ""),  # before 0.3.0
        ("", ""),
    ):
        path.write_text(f"{first}epochs: 3\n{last}")
        assert train.read(path) == train.Settings(epochs=3)
    path.write_text("# Settings of a hibana run: digits-0 1f\nepochs: 3\n")
    with pytest.raises(ValueError, match="it is truncated"):
        train.read(path)


def test_settings_may_be_changed_by_hand(tmp_path):
    path = tmp_path / "settings.yaml"
    train.Settings(epochs=3, layers="12-12r").write(path)
    assert checkpoint.read_settings(path) == asdict(train.Settings(epochs=3, layers="12-12r"))
    path.write_text(path.read_text().replace("epochs: 3", "epochs: 4"))
    assert train.resume_settings(tmp_path) == (train.Settings(epochs=4, layers="12-12r"), None)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 8, 8), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (10,), }",
        b"{'descr': '<U2', 'fortran_order': False, 'shape': (10,), }",
        b"(" * 9_999,
    ],
)
def test_an_array_that_contradicts_its_header_is_refused(tmp_path, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(80))
    with pytest.raises(ValueError, match=r"inputs in .*a\.npy"):
        read_numbers(path)


def test_numbers_too_large_for_float32_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    for value in (numpy.nan, 1e300):
        numpy.save(path, numpy.full([2], value))
        with pytest.raises(ValueError, match="must be finite numbers"):
            read_numbers(path)
