"""Reads and writes cache files of machine code: only files that no other user can have written.

An untrusted file counts as missing, so that it is replaced; an untrusted folder is an error.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

UNFINISHED = "unfinished-"
"""Prefix of a temporary file; a process that is killed while writing leaves one behind."""
ABANDONED = 600
"""Age in seconds from which a temporary file is abandoned; the slowest write takes half a minute."""
LARGEST = 1 << 28
"""Largest file that is read, in bytes; a kernel has a ten-thousandth of that."""

REPLACES_OPEN_FILES = os.name != "nt"
"""Whether a file may be replaced that another process has open."""

_FLAGS = ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")  # neither through links, nor waiting at a pipe


def read(path: Path) -> bytes | None:
    """The contents of the regular file at `path`; None if it is missing, or others own or can write it."""
    try:
        opened = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _FLAGS))
    except OSError:
        return None
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST or _foreign(status):
            return None
        with os.fdopen(opened, "rb", closefd=False) as file:
            return file.read(LARGEST)
    except OSError:
        return None
    finally:
        os.close(opened)


def write(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically, by renaming a temporary file.

    Where a file that is open can't be replaced, one that another process is reading stays: what is kept here
    is named by what it depends on, so that it serves as well.

    Raises:
        OSError: if it can't be written; the previous file at `path` is kept.
    """
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        if isinstance(error, PermissionError) and not REPLACES_OPEN_FILES and path.is_file():
            return
        raise


def sweep(folder: Path) -> None:
    """Removes temporary files from `folder` that killed processes left behind."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process sweeps too, or the disk is read-only
            if time.time() - left.lstat().st_mtime > ABANDONED:
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()


def require_private(folder: Path) -> None:
    """Raises if other users can create files in `folder`.

    Raises:
        PermissionError: if somebody else owns `folder`, or can write to it.
    """
    if reason := _foreign(folder.stat()):
        raise PermissionError(f"{folder} {reason}")


def _foreign(status: os.stat_result) -> str | None:
    """Why another user may have written the file; None if none can, or the system has no users."""
    if not hasattr(os, "getuid"):
        return None
    if status.st_uid != os.getuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others"
    return None
