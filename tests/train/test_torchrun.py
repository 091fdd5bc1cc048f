"""Trainings that ``torchrun`` started."""

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import train
from hibana.cli import main
from hibana.train import run


@pytest.fixture
def torchrun(monkeypatch):
    """Sets the variables of rank 0 of two processes, with `changes`."""

    def set_variables(**changes):
        variables = {
            **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"},
        }
        for name, value in {**variables, **changes}.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_torchrun_determines_the_number_of_processes(torchrun, tmp_path, capsys):
    def devices(**options):
        return run._with_torchrun_processes(train.Settings(**options), is_resumed=False).devices

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


def test_a_restart_of_torchrun_must_resume_the_run(torchrun, tmp_path):
    torchrun(WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", TORCHELASTIC_RESTART_COUNT="1")
    settings = train.Settings(layers="12", epochs=2, steps=4, batch_size=130)
    with pytest.raises(ValueError, match=r"torchrun restarted .* --resume FOLDER"):
        run.prepare(settings)
    assert run._with_torchrun_processes(settings, is_resumed=True).devices == 1
