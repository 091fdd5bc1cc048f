"""Trainings that ``torchrun`` started; ``benchmarks.faults`` kills their processes."""

import socket
from datetime import timedelta

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import train
from hibana.cli import main
from hibana.train import elastic
from hibana.train.callbacks import Keeper
from hibana.train.run_folder import SETTINGS, claim


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


def test_torchrun_says_how_many_processes_there_are(torchrun, tmp_path, capsys):
    assert elastic.with_devices(train.Settings(devices=4)).devices == 4
    torchrun()
    assert elastic.with_devices(train.Settings()).devices == 2
    assert elastic.with_devices(train.Settings(devices=2)).devices == 2
    with pytest.raises(
        ValueError, match="must be the 2 processes on each of 1 machines that torchrun started, got 4"
    ):
        train.fit(train.Settings(devices=4), tmp_path / "run")
    assert main(["train", "--devices", "4", "--out", str(tmp_path / "run")]) == 2
    assert "must be the 2 processes" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.ckpt"))


def test_a_restart_finds_the_folder_of_the_same_torchrun(torchrun, tmp_path):
    def begin():
        with claim(tmp_path / "run") as folder:
            folder.begin(train.Settings())
            return folder.path

    def found(**changes):
        torchrun(**{"TORCHELASTIC_RESTART_COUNT": "1", **changes})
        return elastic.before_restart(tmp_path / "run", SETTINGS)

    begin()
    assert found() is None
    torchrun()
    assert begin() == found() == tmp_path / "run-1"
    assert found(TORCHELASTIC_RESTART_COUNT="0") is None
    assert found(TORCHELASTIC_ERROR_FILE="/tmp/torchelastic_c/none_d/attempt_1/0/error.json") is None


def test_fit_resumes_after_a_restart(torchrun, tmp_path, monkeypatch):
    settings = train.Settings(layers="12", epochs=2, steps=4, batch_size=130)
    _, undisturbed = train.fit(settings, tmp_path / "undisturbed")
    keep = Keeper.on_train_epoch_end

    def keep_and_fail(self, *arguments):
        keep(self, *arguments)
        raise RuntimeError("stopped here")

    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    with monkeypatch.context() as patched:
        patched.setattr(Keeper, "on_train_epoch_end", keep_and_fail)
        with pytest.raises(RuntimeError, match="stopped here"):
            train.fit(settings, tmp_path / "run")
    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", TORCHELASTIC_RESTART_COUNT="1")
    _, outcome = train.fit(settings, tmp_path / "run")
    assert outcome.checkpoint == tmp_path / "run" / "checkpoint.ckpt"
    assert outcome.history == undisturbed.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "undisturbed"]


def test_a_process_that_does_not_join_is_an_error(torchrun, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")
    monkeypatch.setattr(elastic, "TIMEOUT", timedelta(seconds=2))
    with pytest.raises(
        elastic.NotJoinedError, match="process 0 of 2 could not join the others within 2 seconds"
    ):
        elastic.join("cpu")
