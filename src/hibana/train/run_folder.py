"""The folder of a run: its file names, a lock against other runs, and the search for it after a restart.

The lock is on the file ``.lock`` in the folder. The operating system releases it when the process ends. If a
folder holds another run, the next free number is appended: ``digits-0``, ``digits-0-1``, ``digits-0-2``.

If a process of a training dies, ``torchrun --max-restarts`` starts all its processes again. They resume the
run that the same ``torchrun`` started: its folder names the ``torchrun`` job in the file ``.torchrun``.
"""

import os
import shutil
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Protocol

from filelock import BaseFileLock, FileLock, Timeout
from torch import distributed

from hibana.runtime import files

BEST, LAST, SETTINGS, LOCK, JOB = "best.ckpt", "checkpoint.ckpt", "settings.yaml", ".lock", ".torchrun"
PICTURE, LOGS, RESULT = "training.png", "tensorboard", "result.json"


class Writable(Protocol):
    """Options of a run."""

    def write(self, path: Path, /) -> None:
        """Writes the options to `path`."""


class RunFolder(AbstractContextManager["RunFolder"]):
    """A run's folder, locked until it is closed.

    Attributes:
        path: path of the folder.
        is_main: false in processes of rank 1 and above, which hold no lock and write nothing.
        is_resumed: whether the folder holds the run that is resumed.
    """

    def __init__(self, path: Path, lock: BaseFileLock | None = None, *, is_resumed: bool = False) -> None:
        self.path, self._lock = path, lock
        self.is_main, self.is_resumed = lock is not None, is_resumed

    def begin(self, settings: Writable) -> None:
        """Writes the settings. Unless the run is resumed, deletes the files of an earlier run first."""
        if not self.is_main:
            return
        if not self.is_resumed:
            for name in (SETTINGS, LAST, BEST, PICTURE, RESULT, JOB):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / LOGS, ignore_errors=True)
        settings.write(self.path / SETTINGS)
        if is_torchrun():
            (self.path / JOB).write_text(_torchrun_job(), encoding="utf-8")

    def __exit__(self, *error: object) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()


def claim(path: Path, *, resume: Path | None = None, overwrite: bool = False) -> RunFolder:
    """Locks the folder at `path`, or the first free number after it if `path` holds another run.

    Args:
        path: the requested folder.
        resume: checkpoint or folder of the run that is resumed; `path` may be its folder.
        overwrite: replace the run at `path`.

    Raises:
        ValueError: if another process is training in the folder that is resumed or replaced.
        OSError: if the folder can't be written.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return RunFolder(path)
    resumed_folder = None
    if resume is not None:
        resumed_folder = (resume if resume.is_dir() else resume.parent).resolve()
    for number in count():
        candidate = path if number == 0 else path.with_name(f"{path.name}-{number}")
        is_resumed = candidate.resolve() == resumed_folder
        if _holds_run(candidate) and not (overwrite or is_resumed):
            continue
        candidate.mkdir(parents=True, exist_ok=True)
        lock = FileLock(candidate / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if overwrite or is_resumed:
                raise ValueError(f"folder {candidate} must be free, another training is using it") from error
            continue
        if overwrite or is_resumed or not _holds_run(candidate):  # another process may have written a run
            files.sweep(candidate, age=0)
            return RunFolder(candidate, lock, is_resumed=is_resumed)
        lock.release()
    raise AssertionError("count() never ends")


def is_torchrun() -> bool:
    """Returns whether ``torchrun`` started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def _torchrun_job() -> str:
    """Returns a name that is equal in all processes that one ``torchrun`` starts and restarts."""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    if os.environ["GROUP_WORLD_SIZE"] == "1":  # users may repeat the identifier; this folder's name is random
        name += str(Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents[2:3])
    return name


def interrupted_folder(path: Path) -> Path | None:
    """Returns the folder of the run that this ``torchrun`` started before it restarted its processes.

    Args:
        path: the requested folder of the run; ``PATH-1``, ``PATH-2`` and so on are searched too.

    Returns:
        The folder, or None in the first start and without ``torchrun``.
    """
    if not is_torchrun() or os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        return None
    job_files = path.parent.glob(f"{path.name}*/{JOB}")
    jobs = [file for file in job_files if file.read_text(encoding="utf-8") == _torchrun_job()]
    return max(jobs, key=lambda file: file.stat().st_mtime).parent if jobs else None


def best_checkpoint(path: Path) -> Path:
    """Returns the best epoch's checkpoint in the run's folder `path`, else the last one, else `path`."""
    checkpoints = [path / name for name in (BEST, LAST) if path.is_dir() and (path / name).is_file()]
    return checkpoints[0] if checkpoints else path


def _holds_run(path: Path) -> bool:
    """Returns whether the folder `path` contains settings or a checkpoint."""
    return any((path / name).exists() for name in (SETTINGS, LAST, BEST))
