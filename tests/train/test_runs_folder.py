"""Folders of runs: locks, complete checkpoints, failing disks and losses, resuming, and the list of runs."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")

import numpy as np
import pandas
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from hibana import data, train
from hibana.cli import main, tables
from hibana.runtime import files
from hibana.train import checkpoint, results
from hibana.train.run_folder import claim

QUICK = ["--layers", "12", "--epochs", "1", "--steps", "4", "--batch-size", "130"]


def quick(**changes):
    return train.Settings(**{"layers": "12", "epochs": 1, "steps": 4, "batch_size": 130, **changes})


@pytest.mark.slow
def test_a_run_does_not_change_earlier_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "0", "0", "1"):
        assert main(["train", *QUICK, "--seed", seed]) == 0
    text = capsys.readouterr().out
    folders = [Path("hibana-runs") / name for name in ("digits-0", "digits-0-1", "digits-0-2", "digits-1")]
    assert sorted(Path("hibana-runs").iterdir()) == folders
    assert (
        "hibana-runs/digits-0 holds another run, which is kept; this one is in hibana-runs/digits-0-2" in text
    )
    before = [(folder / "checkpoint.ckpt").stat().st_mtime_ns for folder in folders]
    assert main(["train", *QUICK, "--overwrite", "--out", str(folders[1])]) == 0
    after = [(folder / "checkpoint.ckpt").stat().st_mtime_ns for folder in folders]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_resuming_on_data_of_other_sizes_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK, "--out", "run"]) == 0
    pandas.DataFrame({"a": range(60), "b": [3, 1, 4] * 20, "label": list("xyz") * 20}).to_csv("other.csv")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    for resumed in ("run", "run/checkpoint.ckpt"):
        assert main(["train", "--resume", resumed, "--data", "other.csv", "--epochs", "2"]) == 2
        message = f"data must have inputs of shape [8, 8] and 10 outputs, as in {resumed}, which is resumed"
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    arrays = data.Arrays(torch.rand(40, 5, 5).numpy(), labels=[0, 1] * 20)
    with pytest.raises(ValueError, match=r"they have \[5, 5\] and 2"):
        train.fit(None, "run", resume="run", samples=arrays)


def test_folders_and_files_may_be_strings(tmp_path):
    folder = str(tmp_path / "run")
    train.fit(quick(), folder)
    assert train.read(f"{folder}/settings.yaml") == quick()
    settings, checkpoint_ = train.resume_settings(folder)
    _, outcome = train.fit(replace(settings, epochs=2), folder, resume=str(checkpoint_))
    assert outcome.checkpoint == tmp_path / "run" / "checkpoint.ckpt"
    quick(seed=3).write(f"{folder}/other.yaml")
    assert train.read(f"{folder}/other.yaml").seed == 3


def test_a_run_that_replaces_another_never_resumes_from_its_files(tmp_path, monkeypatch):
    train.fit(quick(patience=5), tmp_path / "run")
    with monkeypatch.context() as patched, claim(tmp_path / "run", overwrite=True) as folder:
        patched.setattr(train.Settings, "write", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        with pytest.raises(OSError, match="killed here"):
            folder.begin(quick(seed=9))
    with pytest.raises(ValueError, match="holds no run of hibana train"):
        train.resume_settings(tmp_path / "run")
    with claim(tmp_path / "run") as folder:
        folder.begin(quick(seed=9))
    assert train.resume_settings(tmp_path / "run") == (quick(seed=9), None)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "settings.yaml"]


def test_two_runs_at_once_have_two_folders(tmp_path):
    with claim(tmp_path / "run") as first, claim(tmp_path / "run") as second:
        assert (first.path.name, second.path.name) == ("run", "run-1")
        first.begin(quick())
        with pytest.raises(ValueError, match="must be free, another training is using it"):
            claim(tmp_path / "run", resume=tmp_path / "run")
        with pytest.raises(ValueError, match="must be free, another training is using it"):
            claim(tmp_path / "run", overwrite=True)
    with claim(tmp_path / "run", resume=tmp_path / "run" / "checkpoint.ckpt") as resumed:
        assert resumed.path == first.path
        assert resumed.is_resumed
    with claim(tmp_path / "run", resume=tmp_path / "elsewhere" / "checkpoint.ckpt") as other:
        assert other.path == second.path  # run holds another run, and run-1 none


@pytest.mark.slow
def test_a_killed_process_releases_its_folder(tmp_path):
    script = f"""
import time
from pathlib import Path
from hibana.train.run_folder import claim
folder = claim(Path({str(tmp_path / "run")!r}))
print("locked", flush=True)
time.sleep(60)
"""
    source = Path(train.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    with claim(tmp_path / "run") as other:
        assert other.path.name == "run-1"
    (tmp_path / "run" / "unfinished-0123456789abcdef").write_bytes(bytes(10))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with claim(tmp_path / "run") as folder:
        assert folder.path.name == "run"
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names open files by /proc")
def test_a_checkpoint_is_synced_before_it_replaces_the_previous_one(tmp_path, monkeypatch):
    path, calls = tmp_path / "a.ckpt", []
    path.write_bytes(b"before")
    sync, rename = os.fsync, os.replace

    def record_sync(descriptor):
        calls.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.read_bytes()))
        sync(descriptor)

    def record_rename(source, target, **options):
        calls.append(("rename", os.fspath(source), path.read_bytes()))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    files.write(path, b"after")
    (_, temporary, _), *_ = calls
    assert Path(temporary).parent == tmp_path
    assert calls == [
        ("sync", temporary, b"before"),
        ("rename", temporary, b"before"),
        ("sync", str(tmp_path), b"after"),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_previous_checkpoint_and_raises_a_one_line_error(tmp_path, monkeypatch, capsys):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "run" / "checkpoint.ckpt"
    assert main(["train", *QUICK, "--out", str(tmp_path / "run")]) == 0
    before = path.read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write({"a": 1}, path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("unfinished-*"))
    assert main(["train", *QUICK, "--out", str(tmp_path / "full")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "can't be written: No space left on device" in err


def train_status(folder):
    """The exit status of a training in `folder`, and its text on standard error."""
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        return main(["train", *QUICK, "--out", str(folder)]), sys.stderr.getvalue()
    finally:
        sys.stderr = stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("objective", float("nan"), "epoch 1 of 1, batch 2 of 10: the loss is nan"),
        ("penalty", float("inf"), "epoch 1 of 1, batch 2 of 10: the loss with its penalty is inf"),
        ("gradient", float("nan"), "epoch 1 of 1, batch 2 of 10: the gradient's norm is nan"),
    ],
)
def test_a_training_that_diverges_stops_and_names_the_batch(tmp_path, monkeypatch, name, value, message):
    from hibana.train import Classifier, classifier

    steps = []

    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * value

    class WrongLoss:
        def __init__(self, objective):
            self.objective = objective

        def __getattr__(self, attribute):
            return getattr(self.objective, attribute)

        def __call__(self, outputs, labels, *lengths):
            error = self.objective(outputs, labels, *lengths)
            if name == "objective" and len(steps) == 2:
                return error * value
            return WrongGradient.apply(error) if name == "gradient" and len(steps) == 2 else error

    augmented, penalty = classifier.augment_batch, classifier.loss.rate_penalty
    configured = Classifier.configure_optimizers

    def count_steps(inputs, augmentation):
        steps.append(augmentation)
        return augmented(inputs, augmentation)

    def wrong_penalty(spikes, target, *lengths):
        is_wrong = name == "penalty" and len(steps) == 2
        return penalty(spikes, target, *lengths) + (value if is_wrong else 0)

    def set_wrong_loss(self):
        self.objective = WrongLoss(self.objective)
        return configured(self)

    monkeypatch.setattr(classifier, "augment_batch", count_steps)
    monkeypatch.setattr(classifier.loss, "rate_penalty", wrong_penalty)
    monkeypatch.setattr(Classifier, "configure_optimizers", set_wrong_loss)
    status, errors = train_status(tmp_path / "run")
    assert status == 1
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoint.ckpt").exists()


def accuracy(capsys):
    output = capsys.readouterr().out
    return output.partition("accuracy")[2].replace("│", " ").split()[0]


def test_the_accuracy_is_reproducible_with_a_random_coding(tmp_path, capsys):
    options = ["--layers", "24", "--epochs", "3", "--steps", "2", "--coding", "poisson"]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    reported = accuracy(capsys)
    path = tmp_path / "run" / "checkpoint.ckpt"
    for command in (["train", "--resume", tmp_path / "run"], ["predict", path], ["predict", path]):
        torch.manual_seed(time.monotonic_ns())
        assert main([str(argument) for argument in command]) == 0
        assert accuracy(capsys) == reported


def test_a_run_stopped_early_is_not_continued(tmp_path):
    settings = quick(epochs=30, patience=2, learning_rate=1e-7, coding="poisson")
    _, outcome = train.fit(settings, tmp_path / "run")
    last = tmp_path / "run" / "checkpoint.ckpt"
    before = checkpoint.read(last)
    assert before["epoch"] < 29
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed, path = train.resume_settings(tmp_path / "moved")
    _, resumed_outcome = train.fit(resumed, tmp_path / "moved", resume=path)
    assert resumed_outcome.accuracy == outcome.accuracy
    assert resumed_outcome.checkpoint == tmp_path / "moved" / "best.ckpt"
    assert checkpoint.read(tmp_path / "moved" / "checkpoint.ckpt")["epoch"] == before["epoch"]
    _, elsewhere = train.fit(resumed, tmp_path / "elsewhere", resume=path)
    assert elsewhere.accuracy == outcome.accuracy


def rows(**options):
    """A table with a quantity `y`; a linear model explains a part of its variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 2, generator=generator)
    y = x[:, 0] + 0.5 * torch.randn(80, generator=generator)
    frame = pandas.DataFrame({"a": x[:, 0].numpy(), "b": x[:, 1].numpy(), "y": y.numpy()})
    return data.Table(frame, **options)


def test_runs_are_listed_in_80_columns_with_the_linear_models_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    runs = Path("hibana-runs")
    options = ["--surrogate", "ATan", "--layers", "16c3b-p2-32c3b-p2-128", "--smoothing", "0.125"]
    assert main(["train", *QUICK[2:], *options]) == 0
    train.fit(train.Settings(layers="4", epochs=1), runs / "quantity", samples=rows())
    capsys.readouterr()
    assert main(["runs"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert max(len(line) for line in lines) <= 80
    assert lines[0].split() == ["run", "data", "result", "linear", "when"]
    assert "layers 16c3b-p2-32c3b-p2-128, surrogate ATan" in lines[2]
    result = json.loads((runs / "digits-0" / "result.json").read_text())
    (digits,) = (line.split() for line in lines if line.startswith("digits-0"))
    assert digits[1:4] == ["digits", f"{result['value']:.1%}", f"{result['linear']['value']:.1%}"]
    (quantity,) = (line for line in lines if line.startswith("quantity"))
    assert "in memory" in quantity
    assert "R² " in quantity
    assert "not finished" not in quantity


def test_predict_refuses_a_run_on_data_in_memory(tmp_path, capsys):
    train.fit(train.Settings(layers="4", epochs=1), tmp_path / "run", samples=rows())
    assert train.load(tmp_path / "run").settings.data == "in memory"
    assert main(["predict", str(tmp_path / "run")]) == 2
    assert "data of this run were in memory and can't be read again" in capsys.readouterr().err


def test_variance_explained_is_r_squared_on_the_test_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = rows().source
    frame[:60].to_csv("mine.csv", index=False)
    (frame[60:] * 0.3 + 0.1).to_csv("test.csv", index=False)  # with another variance
    arguments = ["--data", "mine.csv", "--test", "test.csv", "--layers", "8", "--epochs", "2"]
    assert main(["train", *arguments, "--out", "run"]) == 0
    output = capsys.readouterr().out
    answers = train.predict("run", "test.csv")
    truth = [float(label) for label in answers.labels]
    expected = r2_score(truth, answers.answers)
    result = json.loads(Path("run/result.json").read_text())
    assert result["value"] == pytest.approx(expected, abs=1e-4)
    error = sum((a - b) ** 2 for a, b in zip(truth, answers.answers, strict=True)) / len(truth)
    printed_error = output.partition("mean squared error")[2].replace("│", " ").split()[0]
    assert float(printed_error) == pytest.approx(error, rel=1e-3)
    assert result["error"] == pytest.approx(error, rel=1e-4)
    assert result["quantity"] == "y"
    assert output.count("(in the unit of y, squared)") == 2  # of the network and of the linear model
    assert f"{expected:.1%}" in output
    samples = data.Table("mine.csv", test="test.csv")
    samples.setup()
    ridge = Ridge().fit(samples.training.inputs, samples.training.labels)
    linear = r2_score(samples.test.labels, ridge.predict(samples.test.inputs))
    assert result["linear"]["value"] == pytest.approx(linear, abs=1e-4)
    ridge_error = np.mean((ridge.predict(samples.test.inputs) - samples.test.labels.numpy()) ** 2)
    unit = samples.description.target.deviation**2
    assert result["linear"]["error"] == pytest.approx(ridge_error * unit, rel=1e-4)
    assert main(["predict", "run"]) == 0
    line = f"error {error:.4g} (in the unit of y, squared), {expected:.1%} of the variance explained"
    assert line in capsys.readouterr().out


def test_the_result_of_a_regression_has_its_own_names_and_the_unit_of_the_data(tmp_path):
    frame = rows().source
    samples = data.Table(frame[:60], test=frame[60:] * 3)  # another variance
    model, outcome = train.fit(train.Settings(layers="8", epochs=2), tmp_path / "run", samples=samples)
    labels, answers = (frame[60:]["y"] * 3).tolist(), train.predict(model, frame[60:] * 3).answers
    error = np.mean([(a - b) ** 2 for a, b in zip(answers, labels, strict=True)])
    assert outcome.quantity == "y"
    assert outcome.error == pytest.approx(error, rel=1e-4)
    assert outcome.explained == outcome.value == pytest.approx(r2_score(labels, answers), abs=1e-4)
    assert len(outcome.history[f"validation/{outcome.measure}"]) == len(outcome.history["training/explained"])
    for result in (outcome, train.linear(model, samples)):
        with pytest.raises(AttributeError, match="has no accuracy: its measure is explained"):
            _ = result.accuracy


def test_results_of_earlier_versions_are_listed(tmp_path):
    content = {"measure": "explained", "value": 0.5, "rates": {}, "linear": {"accuracy": 0.25}}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert results.read(tmp_path) == ("explained", 0.5, {}, 0.25)


@pytest.mark.parametrize(
    ("layers", "score", "message"),
    [
        ("256,256", 0.4, "try --layers 32-skip --patience 30 --weight-decay 2.0."),
        ("32-skip", 0.4, "more samples may help; with these, use the linear model."),
        ("256,256", 0.56, ""),
    ],
)
def test_a_result_far_below_the_linear_model_suggests_options(layers, score, message, capsys):
    few_rows = {"patience": 30, "weight_decay": 2.0} if layers == "32-skip" else {}
    settings = train.Settings(layers=layers, **few_rows)
    linear = train.Linear("accuracy", 0.6, "linear classifier")
    paths = {"settings": settings, "checkpoint": Path("a"), "logs": None}
    measured = {"measure": "accuracy", "value": score, "rates": {}, "silent": {}, "started": {}}
    tables.print_result(train.Outcome(**paths, **measured, seconds=1.0, history={}), linear, [])
    output = capsys.readouterr().out
    assert ("The network is far below the linear classifier (40.0% beside 60.0%)" in output) is bool(message)
    assert message in output
