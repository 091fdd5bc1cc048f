"""Writes files atomically, and checks that other users can't write files into a folder."""

import contextlib
import os
import secrets
import stat
import time
from pathlib import Path

UNFINISHED = "unfinished-"
"""Prefix of a temporary file, which stays behind if a process is killed while writing."""
ABANDONED = 600
"""Age in seconds after which a temporary file is abandoned; the slowest write takes half a minute."""


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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path, age: float = ABANDONED) -> None:
    """Removes temporary files in `folder` that are at least `age` seconds old."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process removes it too, or the disk is read-only
            if time.time() - path.lstat().st_mtime >= age:
                path.unlink()


def require_private(folder: Path) -> None:
    """Raises PermissionError if another user owns `folder` or can create files in it."""
    if not hasattr(os, "getuid"):
        return  # Windows
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be written by others")
