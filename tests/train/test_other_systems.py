"""A run's folder on systems without ``fcntl``, as Windows is."""

import errno
import os

import pytest

fcntl = pytest.importorskip("fcntl", reason="it stands for the locks that are simulated")
pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana.train import folder  # noqa: E402 - needs the extra
from hibana.train.folder import own  # noqa: E402 - as above


class Msvcrt:
    """``msvcrt`` as far as locks go, which says by a PermissionError that another holds one."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, mode, count):
        assert (mode, count) == (Msvcrt.LK_NBLCK, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def test_locks_of_windows_keep_two_runs_apart(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder, "fcntl", None)
    monkeypatch.setattr(folder, "msvcrt", Msvcrt)
    with own(tmp_path / "run") as first, own(tmp_path / "run") as second:
        assert [each.path.name for each in (first, second)] == ["run", "run-1"]
        with pytest.raises(ValueError, match="another training is at work in it"):
            own(tmp_path / "run", overwrite=True)
    with own(tmp_path / "run") as again:
        assert again.path.name == "run"
    assert caplog.messages == []


def test_a_system_without_locks_says_so_in_one_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder, "fcntl", None)
    monkeypatch.setattr(folder, "msvcrt", None)
    with own(tmp_path / "run") as first:
        assert first.path.name == "run"
    (said,) = caplog.messages
    assert said.endswith(
        "can't be locked (Python has no locks of files here): keep other trainings out of it"
    )
