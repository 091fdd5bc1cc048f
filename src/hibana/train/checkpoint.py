"""Checkpoint files: the zip of ``torch.save``, with the SHA-256 digest of all other bytes in its comment.

``torch.load`` reads them too. The digest detects damage, not intent: whoever crafts a file can compute its
digest. ``weights_only=True`` builds tensors and plain values from a crafted file and calls nothing else.
"""

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import torch

from hibana.runtime import files

__all__ = ["read", "write"]

_MARK = b"hibana sha256 "
_HEX = 64
"""Characters of a digest."""


def write(content: dict[str, Any], path: Path) -> None:
    """Replaces the checkpoint at `path`; the old one stays until the new one is complete on the disk.

    Raises:
        OSError: if it can't be written.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    raw = bytearray(stream.getbuffer())
    raw[-2:] = struct.pack("<H", len(_MARK) + _HEX)  # a zip ends in the length of its comment and the comment
    raw += _MARK
    raw += hashlib.sha256(raw).hexdigest().encode()
    files.write(path, raw)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, with its tensors on the CPU.

    Raises:
        ValueError: if there is no file, or it was changed since :func:`write` wrote it, or it holds anything
            but tensors and plain values.
    """
    expected = "checkpoint must be a file that `hibana train` wrote"
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{expected}; there is no file or folder {path}") from error
    except (OSError, ValueError) as error:  # a ValueError for a path with a zero byte
        if path.is_dir():
            raise ValueError(f"{expected}; folder {path} holds no run of hibana train") from error
        raise ValueError(f"{expected}; {path} can't be read: {error}") from error
    body, digest = raw[:-_HEX], raw[-_HEX:]
    if not body.endswith(_MARK):
        raise ValueError(f"{expected}; {path} has no digest at its end: it is another file, or was cut short")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{expected}; {path} was changed since it was written: its digest differs")
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, and its message suggests weights_only=False
        raise ValueError(f"{expected}; {path} holds more than tensors and plain values") from error
    if not isinstance(content, dict):
        raise ValueError(f"{expected}; {path} holds a {type(content).__name__}")  # noqa: TRY004 - not an argument's type
    return content
