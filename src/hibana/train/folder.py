"""The folder of a run: locked while the run trains, and never overwritten by another run.

The lock is on the file ``.lock`` in the folder; the operating system releases it when the process ends. Every
file that a run can be resumed from holds the run's name, which is drawn at random. If a folder holds another
run, the next number is used: ``digits-0``, ``digits-0-1``, ``digits-0-2``.
"""

import contextlib
import secrets
import shutil
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, Timeout

from hibana.runtime import files
from hibana.train import checkpoint, elastic, record
from hibana.train.settings import Settings

__all__ = ["BEST", "LAST", "RESULT", "SETTINGS", "Folder", "checkpoint_of", "identity", "own"]

BEST, LAST, SETTINGS, LOCK = "best.ckpt", "checkpoint.ckpt", "settings.yaml", ".lock"
PICTURE, LOGS, RESULT = "training.png", "tensorboard", "result.json"


class Folder(AbstractContextManager["Folder"]):
    """A run's folder, locked until it is closed.

    Attributes:
        path: of the folder.
        run: the name of the run that owns it; ``None`` in processes of rank 1 and above.
    """

    def __init__(self, path: Path, run: str | None, lock: BaseFileLock | None = None) -> None:
        self.path, self.run, self._lock = path, run, lock

    def begin(self, settings: Settings) -> None:
        """Writes the run's name and settings, and removes the files of another run."""
        if self.run is None:
            return
        others = not _is_of(self.path, self.run)
        settings.write(self.path / SETTINGS, self.run)
        if others:
            for name in (LAST, BEST, PICTURE, RESULT):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / LOGS, ignore_errors=True)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def own(path: Path, *, run: str | None = None, overwrite: bool = False) -> Folder:
    """The folder at `path`, for a run alone; the next number beside it where `path` holds another run.

    Args:
        path: where the run should go.
        run: the run to go on with; a new one if ``None``.
        overwrite: take `path` whatever it holds.

    Raises:
        ValueError: if another process is at work in the very folder that is wanted.
        OSError: if it can't be written.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return Folder(path, None)
    for number in count():
        candidate = path if number == 0 else path.with_name(f"{path.name}-{number}")
        wanted = overwrite or (run is not None and _is_of(candidate, run))
        if _holds_run(candidate) and not wanted:
            continue
        candidate.mkdir(parents=True, exist_ok=True)
        lock = FileLock(candidate / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if wanted:
                raise ValueError(f"folder {candidate} must be free, another training is using it") from error
            continue
        if wanted or not _holds_run(candidate):  # another process may have written to it before it was locked
            files.sweep(candidate, age=0)
            return Folder(candidate, run or secrets.token_hex(8) + elastic.job(), lock)
        lock.release()
    raise AssertionError("there is always a next number")


def checkpoint_of(path: Path) -> Path:
    """Of a run's folder the checkpoint of its best epoch, or of its last; anything else as it is."""
    kept = [path / name for name in (BEST, LAST) if path.is_dir() and (path / name).is_file()]
    return kept[0] if kept else path


def identity(path: Path) -> str | None:
    """The name of the run that a folder or checkpoint is of; ``None`` if it has none.

    Raises:
        ValueError: if what should say it can't be read.
    """
    if not path.is_dir():
        name = checkpoint.read(path).get("run")
        return name if isinstance(name, str) else None
    if (path / SETTINGS).exists():
        return record.read(path / SETTINGS).run
    return identity(path / LAST) if (path / LAST).exists() else None


def _is_of(path: Path, run: str) -> bool:
    """Whether the folder at `path` holds `run`; of one that is damaged nobody knows."""
    with contextlib.suppress(ValueError):
        return path.is_dir() and identity(path) == run
    return False


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in (SETTINGS, LAST, BEST))
