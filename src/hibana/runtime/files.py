"""Writes files atomically, and reads cache files of machine code unless other users can have written them.

An untrusted cache file is treated as missing and is then replaced; an untrusted folder is an error.
"""

import contextlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path

UNFINISHED = "unfinished-"
"""Prefix of a temporary file, which stays behind if a process is killed while writing."""
ABANDONED = 600
"""Age in seconds after which a temporary file is abandoned; the slowest write takes half a minute."""
LARGEST = 1 << 28
"""Maximum size of a file to read, in bytes; kernels are ten thousand times smaller."""

_FLAGS = ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")  # follow no links, wait at no pipe


def read(path: Path) -> bytes | None:
    """The contents of the regular file at `path`; None if it is missing, or others own or can write it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _FLAGS))
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST or _untrusted_reason(status):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes | bytearray, *, mode: int = 0o666, durable: bool = True) -> None:
    """Replaces the file at `path` atomically: if the process is killed, the old or the new contents remain.

    Args:
        path: the file.
        data: the new contents.
        mode: the permissions, before the umask.
        durable: wait for the disk, so that the write is atomic for a power loss too.

    Raises:
        OSError: if the file can't be written; it is then unchanged.
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
    if durable and os.name != "nt":  # Windows can't open folders
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Waits until the disk has the entries of `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, age: float = ABANDONED) -> None:
    """Removes temporary files and folders in `folder` that are at least `age` seconds old."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process removes it too, or the disk is read-only
            if time.time() - path.lstat().st_mtime >= age:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def require_private(folder: Path) -> None:
    """Checks that other users can't create files in `folder`.

    Raises PermissionError if another user owns `folder` or can write to it.
    """
    if reason := _untrusted_reason(folder.stat()):
        raise PermissionError(f"{folder} {reason}")


def _untrusted_reason(status: os.stat_result) -> str | None:
    """The reason why other users may have written a file or folder; None if they can't, as on Windows."""
    if not hasattr(os, "getuid"):
        return None
    if status.st_uid != os.getuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others"
    return None
