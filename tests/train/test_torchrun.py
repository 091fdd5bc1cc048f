"""Trainings started by ``torchrun``; ``benchmarks.faults`` also tests killed processes."""

import subprocess
import sys

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import train
from hibana.cli import main
from hibana.train import run
from hibana.train.callbacks import CheckpointWriter
from hibana.train.run_folder import claim, interrupted_folder


@pytest.fixture
def torchrun(monkeypatch):
    """Sets the variables of rank 0 of two processes, with `changes`."""

    def set_variables(**changes):
        variables = {
            **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"},
            "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_a/none_b/attempt_0/0/error.json",
        }
        for name, value in {**variables, **changes}.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_torchrun_determines_the_number_of_processes(torchrun, tmp_path, capsys):
    def devices(**options):
        return run._with_torchrun_processes(train.Settings(**options)).devices

    assert devices(devices=4) == 4
    torchrun()
    assert devices() == devices(devices=2) == 2
    with pytest.raises(
        ValueError, match="must be the 2 processes on each of 1 machines that torchrun started, got 4"
    ):
        train.fit(train.Settings(devices=4), tmp_path / "run")
    assert main(["train", "--devices", "4", "--out", str(tmp_path / "run")]) == 2
    assert "must be the 2 processes" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.ckpt"))


def test_a_restart_resumes_the_folder_of_the_same_torchrun(torchrun, tmp_path):
    def begin():
        with claim(tmp_path / "run") as folder:
            folder.begin(train.Settings())
            return folder.path

    def interrupted(**changes):
        torchrun(**{"TORCHELASTIC_RESTART_COUNT": "1", **changes})
        return interrupted_folder(tmp_path / "run")

    begin()
    assert interrupted() is None
    torchrun()
    assert begin() == interrupted() == tmp_path / "run-1"
    assert interrupted(TORCHELASTIC_RESTART_COUNT="0") is None
    assert interrupted(TORCHELASTIC_ERROR_FILE="/tmp/torchelastic_c/none_d/attempt_1/0/error.json") is None


def test_fit_resumes_after_a_restart(torchrun, tmp_path, monkeypatch):
    settings = train.Settings(layers="12", epochs=2, steps=4, batch_size=130)
    _, undisturbed = train.fit(settings, tmp_path / "undisturbed")
    write = CheckpointWriter.on_train_epoch_end

    def write_and_fail(self, *arguments):
        write(self, *arguments)
        raise RuntimeError("stopped here")

    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointWriter, "on_train_epoch_end", write_and_fail)
        with pytest.raises(RuntimeError, match="stopped here"):
            train.fit(settings, tmp_path / "run")
    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", TORCHELASTIC_RESTART_COUNT="1")
    _, outcome = train.fit(settings, tmp_path / "run")
    assert outcome.checkpoint == tmp_path / "run" / "checkpoint.ckpt"
    assert outcome.history == undisturbed.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "undisturbed"]


RESTARTED = """
import os, time
import lightning
from torch import distributed
from hibana.train import run
is_restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
if is_restarted and os.environ["RANK"] == "1":
    time.sleep(2)  # rank 0 looks for the address of rank 1 before rank 1 has one
strategy = run._Processes(timeout=run.TIMEOUT)
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
trainer.strategy.setup_environment()
trainer.strategy.setup_environment()  # as fit and test do
distributed.barrier()
os._exit(0 if is_restarted else 1)
"""


@pytest.mark.slow
def test_restarted_processes_connect_to_each_other(tmp_path):
    (tmp_path / "restarted.py").write_text(RESTARTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [*torchrun, tmp_path / "restarted.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
