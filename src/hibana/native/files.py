"""Files of machine code, which is run unseen: read only if nobody else can have written them.

Nothing here knows what is in a file. A file that can't be believed counts as absent, so that it is made anew
and replaced; a folder that can't be believed is an error.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["UNFINISHED", "read", "require_private", "sweep", "write"]

UNFINISHED = "unfinished-"
"""Begins the name of what is being written; whoever is killed meanwhile leaves it behind."""
ABANDONED = 600
"""Seconds after which nobody is writing any more: a kernel takes a millisecond, the node half a minute."""
LARGEST = 1 << 28
"""Bytes; a kernel has a ten thousandth of them."""

_FLAGS = ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")  # neither through links, nor waiting at a pipe


def read(path: Path) -> bytes | None:
    """What the plain file at `path` holds; None if there is none, or others own it or can write to it."""
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
    """Puts `data` at `path` in one move, so that nobody sees half of it, and leaves nothing else behind.

    Raises:
        OSError: if it can't be written; what was at `path` is still there.
    """
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def sweep(folder: Path) -> None:
    """Removes from `folder` what processes that were killed left unfinished."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process sweeps too, or the disk is read-only
            if time.time() - left.lstat().st_mtime > ABANDONED:
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()


def require_private(folder: Path) -> None:
    """Refuses a folder in which others can put files.

    Raises:
        PermissionError: if somebody else owns `folder`, or can write to it.
    """
    if reason := _foreign(folder.stat()):
        raise PermissionError(f"{folder} {reason}")


def _foreign(status: os.stat_result) -> str | None:
    """Why others may have written what `status` is of, on systems that know owners."""
    if not hasattr(os, "getuid"):
        return None
    if status.st_uid != os.getuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others"
    return None
