"""Arrays in ``.npy`` files of people's own, read so that no file, however made, takes more than it holds."""

import math
import os
import re
import stat
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Start", "array", "read", "starts"]

MOST_HEADER, MOST_AXES = 10_000, 16
"""Bytes of a header at most, and the axes that it says."""
FIRST = 1 << 16
"""Bytes of an array that are looked at to see what it holds."""
_ITEM = r"""['"](\w+)['"]: ?(['"][^'"]{1,40}['"]|True|False|\((?:\d{1,18}, ?)*(?:\d{1,18})?\))"""
_HEADER = re.compile(rf"\{{{_ITEM}, ?{_ITEM}, ?{_ITEM}(?:, ?)?\}}")
_NUMBERS = re.compile(r"""['"][<>|=]?(?:[fiu]\d{1,2}|b1)['"]""")
UNREADABLE = OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError
"""What reading a damaged ``.npy`` or ``.npz`` file raises beside ``ValueError``; the last for a password."""


def read(path: Path) -> Tensor:
    """The numbers in a ``.npy`` file, as ``float32``.

    Raises:
        ValueError: if there is no such file, it does not hold what its header says, or that is no finite
            number.
    """
    with np.errstate(over="ignore"):  # which is no finite number, and said so
        numbers = torch.from_numpy(array(path).astype(np.float32))
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"inputs must be finite numbers, {path} holds some that are not")
    return numbers


def array(path: Path) -> np.ndarray[Any, Any]:
    """The numbers in a ``.npy`` file, as they are.

    Raises:
        ValueError: if there is no such file, or it does not hold what its header says.
    """
    wanted = f"inputs must be a .npy file of numbers, {path} is none"
    try:
        # of a pipe that nobody writes to, Path.open waits for ever
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(opened, "rb") as file:  # noqa: PTH123
            return _array(file)
    except OSError as error:
        raise ValueError(f"{wanted}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error


Head = tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]
"""Shape, order and type of an array."""


class Start(NamedTuple):
    """How an array begins: its shape and type, and its first values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    values: np.ndarray[Any, Any]


def starts(path: Path) -> dict[str, Start]:
    """How the arrays of numbers in an ``.npz`` file or a folder of ``.npy`` files begin, by name.

    Nothing of what can't be read; who reads the arrays says so.
    """
    found: dict[str, Start] = {}
    with suppress(*UNREADABLE):
        if path.is_dir():
            for each in path.glob("*.npy"):
                with each.open("rb") as file, suppress(ValueError):
                    found[each.stem] = _start(file)
        elif path.is_file():
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member, suppress(ValueError):
                        found[name.removesuffix(".npy")] = _start(member)
    return found


def _start(file: IO[bytes]) -> Start:
    shape, _, dtype = _head(file)
    whole = FIRST // dtype.itemsize * dtype.itemsize
    read = file.read(whole)
    return Start(shape, dtype, np.frombuffer(read[: len(read) // dtype.itemsize * dtype.itemsize], dtype))


def _array(file: BinaryIO) -> np.ndarray[Any, Any]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    shape, order, dtype = _head(file)
    said, held = math.prod(shape) * dtype.itemsize, status.st_size - file.tell()
    if said != held:
        raise ValueError(f"its header speaks of {said:,} bytes, and it holds {held:,}")
    return np.frombuffer(file.read(held), dtype).reshape(shape, order=order)


def _head(file: IO[bytes]) -> Head:
    magic, version = file.read(6), file.read(2)
    if magic != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as one")
    length = int.from_bytes(file.read(2 if version == b"\1\0" else 4), "little")
    if length > MOST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {MOST_HEADER:,}")
    return _header(file.read(length).decode("latin1"))


def _header(text: str) -> Head:
    """Shape, order and type in a header, which is never evaluated."""
    found = _HEADER.fullmatch(text.rstrip("\n "))
    said = found.groups() if found else ()
    items = dict(zip(said[::2], said[1::2], strict=True))
    named = set(items) == {"descr", "fortran_order", "shape"}
    if not (named and items["fortran_order"] in ("True", "False") and items["shape"].startswith("(")):
        raise ValueError("its header says no type of numbers, order and shape")
    if not _NUMBERS.fullmatch(items["descr"]):
        raise ValueError(f"inputs must be numbers, got {items['descr']}")
    sides = re.findall(r"\d+", items["shape"])
    if len(sides) > MOST_AXES:
        raise ValueError(f"its header says {len(sides)} axes, more than {MOST_AXES}")
    try:
        dtype = np.dtype(items["descr"][1:-1])
    except TypeError as error:
        raise ValueError(f"its header says the type {items['descr']}, which there is not") from error
    return tuple(map(int, sides)), "F" if items["fortran_order"] == "True" else "C", dtype
