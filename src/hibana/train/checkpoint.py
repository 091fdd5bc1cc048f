"""The file of a checkpoint: a zip of ``torch.save`` that ends in a digest of all its bytes.

The digest stands in the zip's comment, so ``torch.load`` reads the file too. It tells damage, not intent:
whoever makes a file makes its digest. So a file is also read as a stranger's: once, into memory, by this
module alone; its sizes come from its directory and add up to no more than the file before anything is
unpacked, and its pickle may name tensors, dictionaries and numbers, and nothing that is called otherwise.
"""

import hashlib
import io
import math
import os
import pickle
import pickletools
import stat
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hibana.train.durable import replace

__all__ = ["MOST_BYTES", "TYPES", "contents", "read", "write"]

MOST_BYTES = 1 << 32
MOST_PICKLED = 1 << 22
MOST_OPERATIONS = 1_000_000
MOST_PARTS = 10_000
"""A file, its pickle, the operations of that, and the tensors, at most."""
_MARK = b"hibana sha256 "
_HEX = 64
_SIGNATURE = b"PK\x05\x06"
_END, _END_64 = 22, 76
"""Bytes of a zip's end, and of what stands before it in one of 64 bits: its own end, and where that is."""
TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_NAMES: dict[str, Any] = {f"torch {name}Storage": dtype for name, dtype in TYPES.items()}
_ALLOWED = {
    *("PROTO", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
}
"""What a pickle of plain data and tensors is made of."""
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError)
_DAMAGE += (OSError, RuntimeError, TypeError, ValueError, struct.error)  # type: ignore[assignment]
_DAMAGE += (pickle.UnpicklingError, zipfile.BadZipFile)  # type: ignore[assignment]


class _RefusedError(ValueError):
    """Why a file is not read."""


def write(content: dict[str, Any], path: Path) -> None:
    """Puts a checkpoint at `path`; the one before stays until this one is whole on the disk.

    Raises:
        OSError: if it can't be written.
        ValueError: if it is larger than :func:`read` reads.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    raw = bytearray(stream.getbuffer())
    raw[-2:] = struct.pack("<H", len(_MARK) + _HEX)
    raw += _MARK
    raw += hashlib.sha256(raw).hexdigest().encode()
    try:
        with _opened(bytes(raw)) as archive:
            _pickle(archive)
    except _RefusedError as error:
        raise ValueError(f"checkpoint {path} {error}, and would not be read again") from error
    replace(path, raw)


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` put at `path`, its tensors on the CPU.

    A file without a digest, as an older version wrote it, is held against the check sums of its parts.

    Raises:
        ValueError: if there is no such file, or it is not as it was written, or holds what no checkpoint
            does.
    """
    wanted = "checkpoint must be a file that `hibana train` wrote"
    try:
        with _opened(contents(path, b"PK\x03\x04")) as archive:
            return _named(_Reader(archive).load())
    except _RefusedError as error:
        raise ValueError(f"{wanted}; {path} {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{wanted}; there is no file or folder {path}") from error
    except OSError as error:
        if path.is_dir():
            raise ValueError(f"{wanted}; folder {path} holds no run of hibana train") from error
        raise ValueError(f"{wanted}; {path} can't be read: {error.strerror}") from error
    except (*_DAMAGE, RecursionError) as error:  # what contradicts itself may end in any of them
        raise ValueError(f"{wanted}; {path} holds something else") from error


def _named(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise _RefusedError("holds something else")
    return content


def contents(path: Path, begins: bytes = b"", most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, read once: what is checked is what is loaded.

    Args:
        path: of a regular file.
        begins: the first bytes of every such file.
        most: bytes of the file at most.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is no regular file, too large, or begins otherwise; a part of a sentence.
    """
    if "\0" in str(path):
        raise _RefusedError("can't be read: it is no path")
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123 - of a pipe nobody writes to, Path.open waits for ever
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _RefusedError("can't be read: it is no file")
        if status.st_size > most:
            raise _RefusedError(f"has {status.st_size:,} bytes, more than {most:,}")
        first = file.read(len(begins))
        if first != begins:
            raise _RefusedError("is none, or was cut short")
        return first + file.read(status.st_size)


def _opened(raw: bytes) -> zipfile.ZipFile:
    """The archive in `raw`, whose bytes are those that were written, and whose parts fit in it."""
    end = len(raw) - _END
    signed = not (raw[end : end + 4] == _SIGNATURE and raw[-2:] == b"\0\0")
    if signed:
        end -= len(_MARK) + _HEX
        _check_digest(raw, end)
    parts, size, offset, follows = _directory(raw, end)
    if offset + size != follows or parts > MOST_PARTS:
        raise _RefusedError("is none, or was cut short")
    archive = zipfile.ZipFile(io.BytesIO(raw))
    members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
        raise _RefusedError("is compressed, which no checkpoint is")
    if sum(m.file_size for m in members) > len(raw) or len(set(archive.namelist())) != len(members):
        raise _RefusedError("unpacks to more than it holds")
    if not signed and archive.testzip() is not None:
        raise _RefusedError("was changed since it was written")
    return archive


def _check_digest(raw: bytes, end: int) -> None:
    comment = len(_MARK) + _HEX
    marked = raw[end : end + 4] == _SIGNATURE and raw[end + _END :].startswith(_MARK)
    if end < 0 or not marked or raw[end + _END - 2 : end + _END] != struct.pack("<H", comment):
        raise _RefusedError("is none, or was cut short")
    if hashlib.sha256(memoryview(raw)[:-_HEX]).hexdigest().encode() != raw[-_HEX:]:
        raise _RefusedError("was changed since it was written: its digest is another")


def _directory(raw: bytes, end: int) -> tuple[int, int, int, int]:
    """Of the archive that ends at `end`: its parts, its directory's size, where that is, and what follows."""
    locator = end - _END_64 + 56
    if locator >= 56 and raw[locator : locator + 4] == b"PK\x06\x07":
        (record,) = struct.unpack_from("<Q", raw, locator + 8)
        if record != end - _END_64 or raw[record : record + 4] != b"PK\x06\x06":
            raise _RefusedError("is none, or was cut short")
        return (*struct.unpack_from("<3Q", raw, record + 32), record)
    parts, size, offset = struct.unpack_from("<HLL", raw, end + 10)
    return parts, size, offset, end


def _pickle(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """The folder in which all parts lie, and the pickle in it, which does nothing but name data."""
    folder = archive.namelist()[0].partition("/")[0]
    status = archive.getinfo(f"{folder}/data.pkl")
    if status.file_size > MOST_PICKLED:
        raise _RefusedError(
            f"describes its tensors in {status.file_size:,} bytes, more than {MOST_PICKLED:,}"
        )
    pickled = archive.read(status)
    tuples = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        tuples += operation.name.startswith("TUPLE")
        if operation.name not in _ALLOWED:
            raise _RefusedError("holds something else than numbers, text and tensors")
        if operation.name == "GLOBAL" and argument not in _NAMES:
            raise _RefusedError(f"names {str(argument)[:100]!r}, which no checkpoint does")
        if operation.name == "LONG_BINPUT" and int(str(argument)) > len(pickled):
            raise _RefusedError("holds something else")  # Python would make a table of so many entries
        if count > MOST_OPERATIONS or tuples > 100 + 4 * len(archive.namelist()):
            raise _RefusedError("holds something else")  # such as tuples too deep for Python to hash
    return folder, pickled


class _Reader(pickle.Unpickler):
    """Unpickles plain data and tensors; of functions it knows one, which is :func:`_tensor`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.folder, pickled = _pickle(archive)
        super().__init__(io.BytesIO(pickled))
        self.archive = archive
        self.storages: dict[str, Tensor] = {}
        order = f"{self.folder}/byteorder"  # older versions of torch write none
        if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
            raise _RefusedError("was written on a machine of another byte order")

    def find_class(self, module: str, name: str) -> Any:
        return _NAMES[f"{module} {name}"]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise _RefusedError("holds something else")
        if key not in self.storages:
            raw = self.archive.read(f"{self.folder}/data/{key}")
            if len(raw) != count * dtype.itemsize:
                raise _RefusedError("holds tensors of another size than it says")
            empty = torch.empty(0, dtype=dtype, device="cpu")
            self.storages[key] = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else empty
        if self.storages[key].dtype != dtype:
            raise _RefusedError("holds a tensor of two types")
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """The part of `storage` that a tensor is; torch refuses what lies outside."""
    if math.prod(size) > len(storage):
        raise _RefusedError("holds a tensor larger than its numbers")
    return storage.as_strided(size, stride, offset)


_NAMES |= {"collections OrderedDict": OrderedDict, "torch._utils _rebuild_tensor_v2": _tensor}
