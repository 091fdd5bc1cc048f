"""Writes files atomically, and reads cache files of machine code if no other user can have written them.

An untrusted cache file counts as missing, so that it is replaced; an untrusted folder is an error.
"""

import contextlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path

UNFINISHED = "unfinished-"
"""Prefix of a temporary file; a process that is killed while writing leaves one behind."""
ABANDONED = 600
"""Age in seconds from which a temporary file is abandoned; the slowest write takes half a minute."""
LARGEST = 1 << 28
"""Largest file that is read, in bytes; a kernel has a ten-thousandth of that."""

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


def write(path: Path, data: bytes | bytearray, *, mode: int = 0o666, durable: bool = True) -> None:
    """Replaces the file at `path`: a process that is killed leaves the old contents or the new ones.

    Args:
        path: of the file.
        data: its new contents.
        mode: its permissions, before the umask.
        durable: wait for the disk, so that a power loss leaves the old contents or the new ones, too.

    Raises:
        OSError: if it can't be written; the previous file at `path` is kept.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    try:
        temporary.touch(mode=mode, exist_ok=False)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable and os.name != "nt":  # Windows opens no folders
        _sync(path.parent)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sweep(folder: Path, age: float = ABANDONED) -> None:
    """Removes temporary files from `folder` that killed processes left behind `age` seconds ago."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process sweeps too, or the disk is read-only
            if time.time() - left.lstat().st_mtime >= age:
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
