"""Files that are whole at any moment: a crash leaves the one before, or the new one."""

import contextlib
import os
from pathlib import Path

__all__ = ["PARTIAL", "replace"]

PARTIAL = ".partial"
"""How the names of files end that are being written, and of those that a crash left so."""


def replace(path: Path, content: bytes | bytearray) -> None:
    """Puts `content` at `path`: written beside it, so on the same file system, synced, and renamed.

    Raises:
        OSError: if it can't be written; what was at `path` is still there, and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last: it is the folder that changed."""
    if os.name == "nt":  # which opens no folders, and needs none of this
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
