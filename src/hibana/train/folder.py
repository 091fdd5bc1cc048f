"""A run's folder, which belongs to it: one run at a time, and no other's afterwards.

Whoever trains holds a lock on ``.lock`` in it, which the operating system gives back when the process ends,
however it ends. Who ran stands in every file that can be gone on from: a name drawn at random. A folder that
holds another run is left alone, and the next number taken: ``digits-0``, ``digits-0-1``, ``digits-0-2``.
"""

import contextlib
import errno
import logging
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from hibana.train import checkpoint, record
from hibana.train.durable import PARTIAL
from hibana.train.settings import Settings

fcntl: Any = None
msvcrt: Any = None
with contextlib.suppress(ImportError):  # on Windows there is none
    import fcntl
with contextlib.suppress(ImportError):  # and elsewhere none of this
    import msvcrt

__all__ = ["BEST", "LAST", "RESULT", "SETTINGS", "Folder", "checkpoint_of", "identity", "own"]

BEST, LAST, SETTINGS, LOCK = "best.ckpt", "checkpoint.ckpt", "settings.yaml", ".lock"
PICTURE, LOGS, RESULT = "training.png", "tensorboard", "result.json"


class Folder(AbstractContextManager["Folder"]):
    """A run's folder, locked until it is closed.

    Attributes:
        path: where it is.
        run: the name of the run that owns it; ``None`` in a process that only helps.
    """

    def __init__(self, path: Path, run: str | None, lock: int | None = None) -> None:
        self.path, self.run, self._lock = path, run, lock

    def begin(self, settings: Settings) -> None:
        """Enters the run's name and settings; what another run left is then no longer a part of it."""
        if self.run is None:
            return
        others = not _is_of(self.path, self.run)
        settings.write(self.path / SETTINGS, self.run)
        if others:
            for name in (LAST, BEST, PICTURE, RESULT):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / LOGS, ignore_errors=True)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
        lock = _locked(candidate)
        if lock is None:
            if wanted:
                raise ValueError(f"folder {candidate} must be free, another training is at work in it")
            continue
        if wanted or not _holds_run(candidate):  # it may have come to hold one before it was locked
            for left in candidate.glob(f".*{PARTIAL}"):
                left.unlink(missing_ok=True)
            return Folder(candidate, run or secrets.token_hex(8), lock)
        os.close(lock)
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


def _locked(path: Path) -> int | None:
    """The lock of the folder at `path`, or ``None`` where another holds it."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(lock)
    except (BlockingIOError, PermissionError):  # as fcntl and as msvcrt say that another holds it
        os.close(lock)
        return None
    except OSError as error:  # some file systems have no locks
        logging.getLogger(__name__).warning(
            "folder %s can't be locked (%s): keep other trainings out of it", path, error.strerror
        )
    return lock


def _lock(descriptor: int) -> None:
    """Locks a file as this system does.

    Raises:
        BlockingIOError, PermissionError: if another process holds it.
        OSError: if there are no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, "Python has no locks of files here")
