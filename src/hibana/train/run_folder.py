"""The folder of a run: locked while the run trains, and never overwritten by another run.

The lock is on the file ``.lock`` in the folder; the operating system releases it when the process ends. If a
folder holds another run, the next number is used: ``digits-0``, ``digits-0-1``, ``digits-0-2``.
"""

import shutil
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from hibana.runtime import files
from hibana.train import elastic
from hibana.train.settings import Settings

__all__ = ["BEST", "LAST", "LOGS", "PICTURE", "RESULT", "SETTINGS", "Folder", "checkpoint_of", "claim"]

BEST, LAST, SETTINGS, LOCK = "best.ckpt", "checkpoint.ckpt", "settings.yaml", ".lock"
PICTURE, LOGS, RESULT = "training.png", "tensorboard", "result.json"


class Folder(AbstractContextManager["Folder"]):
    """A run's folder, locked until it is closed.

    Attributes:
        path: path of the folder.
        is_main: false in processes of rank 1 and above, which hold no lock and write nothing.
        continues: whether the folder holds the run that is resumed.
    """

    def __init__(self, path: Path, lock: BaseFileLock | None = None, *, continues: bool = False) -> None:
        self.path, self._lock = path, lock
        self.is_main, self.continues = lock is not None, continues

    def begin(self, settings: Settings) -> None:
        """Writes the settings, after removing the files of a run that is replaced."""
        if not self.is_main:
            return
        if not self.continues:
            for name in (SETTINGS, LAST, BEST, PICTURE, RESULT):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / LOGS, ignore_errors=True)
        settings.write(self.path / SETTINGS, elastic.job())

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

    def __exit__(self, *error: object) -> None:
        self.close()


def claim(path: Path, *, resume: Path | None = None, overwrite: bool = False) -> Folder:
    """Locks the folder at `path`, or the next number beside it if `path` holds another run.

    Args:
        path: where the run should go.
        resume: checkpoint or folder that the run continues from; `path` may be its folder.
        overwrite: replace the run at `path`.

    Raises:
        ValueError: if another process is using the folder that is resumed or replaced.
        OSError: if the folder can't be written.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return Folder(path)
    source = None if resume is None else (resume if resume.is_dir() else resume.parent).resolve()
    for number in count():
        candidate = path if number == 0 else path.with_name(f"{path.name}-{number}")
        continues = candidate.resolve() == source
        if _holds_run(candidate) and not (overwrite or continues):
            continue
        candidate.mkdir(parents=True, exist_ok=True)
        lock = FileLock(candidate / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if overwrite or continues:
                raise ValueError(f"folder {candidate} must be free, another training is using it") from error
            continue
        if overwrite or continues or not _holds_run(candidate):  # another process may have been faster
            files.sweep(candidate, age=0)
            return Folder(candidate, lock, continues=continues)
        lock.release()
    raise AssertionError("there is always a next number")


def checkpoint_of(path: Path) -> Path:
    """Checkpoint of the best epoch in the run's folder `path`, or of the last; other paths unchanged."""
    checkpoints = [path / name for name in (BEST, LAST) if path.is_dir() and (path / name).is_file()]
    return checkpoints[0] if checkpoints else path


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in (SETTINGS, LAST, BEST))
