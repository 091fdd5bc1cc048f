"""A NIR file as plain nodes, read so that no file, however made, takes more than it was allowed.

Sizes are taken from the headers before anything is loaded, links are not followed, and every error names
the place in the file.
"""

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["load"]

_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError)
"""What h5py raises on a file whose bytes contradict each other."""
MOST_ENTRIES = 100_000
DEEPEST = 32


def load(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """The contents of the group ``node`` of a NIR file, groups as dictionaries.

    Args:
        path: an HDF5 file.
        max_bytes: the most that all its arrays may take in memory.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a NIR file, is damaged, or is larger than `max_bytes`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {os.fspath(path)!r}")
    try:
        with h5py.File(path, "r") as file:
            return _Loader(max_bytes).group(_entry(file, "node", ""), "")
    except _RefusedError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    except _DAMAGE as error:
        raise ValueError(f"{os.fspath(path)} is damaged or not a NIR file: {error}") from error


class _RefusedError(ValueError):
    """Something in the file that is not read."""


class _Loader:
    def __init__(self, max_bytes: int) -> None:
        self.allowed = max_bytes
        self.left = max_bytes
        self.entries = 0

    def group(self, group: Any, where: str) -> dict[str, Any]:
        if not isinstance(group, h5py.Group):
            raise _RefusedError(f"{where or 'node'} must be a group, got a dataset")
        if where.count("/") > 2 * DEEPEST:
            raise _RefusedError(f"{where[:80]}… is nested deeper than {DEEPEST} graphs")
        content: dict[str, Any] = {}
        for name in group:
            self.entries += 1
            if self.entries > MOST_ENTRIES:
                raise _RefusedError(f"more than {MOST_ENTRIES} entries")
            below = f"{where}/{name}".removeprefix("/")
            try:
                item = _entry(group, name, below)
                content[name] = (self.group if isinstance(item, h5py.Group) else self.array)(item, below)
            except _DAMAGE as error:
                raise _RefusedError(f"{below} is damaged: {error}") from error
        return content

    def array(self, item: Any, where: str) -> Any:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            raise _RefusedError(f"{where} must be a dataset with values")
        if item.is_virtual or item.external:
            raise _RefusedError(f"{where} keeps its values outside the file")
        stored = math.prod(item.chunks or ())
        self.take(max(item.size, stored) * item.dtype.itemsize, where)
        if item.dtype.kind == "O":
            return self.strings(item, where)
        if item.dtype.kind not in "biufS":
            raise _RefusedError(f"{where} must hold numbers or text, got {item.dtype}")
        value = item[()]
        return value.decode() if isinstance(value, bytes) else value

    def strings(self, item: Any, where: str) -> Any:
        """Text of any length: one at a time, because its length stands in no header."""
        if h5py.check_string_dtype(item.dtype) is None:
            raise _RefusedError(f"{where} must hold numbers or text, got {item.dtype}")
        if item.size > MOST_ENTRIES:
            raise _RefusedError(f"{where} has more than {MOST_ENTRIES} texts")
        texts = np.empty(item.shape, object)
        for index in np.ndindex(item.shape):
            value = item[index]
            self.take(len(value), where)
            texts[index] = value.decode() if isinstance(value, bytes) else value
        return texts[()]

    def take(self, size: int, where: str) -> None:
        self.left -= size
        if self.left < 0:
            raise _RefusedError(
                f"{where} would bring the file to more than the {self.allowed:,} bytes of max_bytes in memory"
            )


def _entry(group: Any, name: str, where: str) -> Any:
    link = group.get(name, getlink=True)
    if link is None:
        raise _RefusedError(f"has no group {name!r}, so it is not a NIR file")
    if not isinstance(link, h5py.HardLink):
        raise _RefusedError(f"{where} is a link to elsewhere, which is not followed")
    return group[name]
