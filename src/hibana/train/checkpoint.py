"""Files of a run that other people may have written: checkpoints, and settings in YAML.

A checkpoint is the zip file of ``torch.save`` whose comment is the SHA-256 digest of all other bytes.
``torch.load`` can read it too. The digest detects damage, not manipulation: the author of a crafted file
can compute its digest. ``weights_only=True`` protects from crafted files: it builds tensors and plain
values only, and calls no function that a file names.
"""

import hashlib
import io
import struct
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

import torch
import yaml

from hibana.data.user_data.samples import reading
from hibana.runtime import files

EXPECTED = "checkpoint must be a file that `hibana train` wrote"
"""First half of each error message about a checkpoint."""
RUNS = Path("hibana-runs")
"""Folder of the runs whose folder is not named."""
_DIGEST_LABEL = b"hibana sha256 "
_DIGEST_LENGTH = 64
"""Hexadecimal digits."""
MAX_BYTES = 1 << 16
"""Maximum size of a settings file."""
_FIRST, _LAST = "# Settings of a hibana run: ", "# End of these settings"
"""Beginnings of the first and the last line of a settings file that hibana wrote; 0.2.0 continues both."""


def write(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint. An existing file at `path` is replaced once the new one is complete on the disk.

    Raises:
        OSError: if the file can't be written.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    archive = bytearray(stream.getbuffer())
    # a zip file ends with the length of its comment, two bytes, and the comment
    archive[-2:] = struct.pack("<H", len(_DIGEST_LABEL) + _DIGEST_LENGTH)
    archive += _DIGEST_LABEL
    archive += hashlib.sha256(archive).hexdigest().encode()
    files.write(path, archive)


def read(path: Path) -> dict[str, Any]:
    """Returns the content of the checkpoint at `path`, with its tensors on the CPU.

    Raises:
        ValueError: if the file is missing, changed since :func:`write` wrote it, or contains anything except
            tensors and plain values.
    """
    try:
        archive = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError for a path with a zero byte
        hint = f"; did you mean {RUNS / path}?" if "\0" not in str(path) and (RUNS / path).exists() else ""
        raise ValueError(f"{EXPECTED}; {path} can't be read: {error}{hint}") from error
    body, digest = archive[:-_DIGEST_LENGTH], archive[-_DIGEST_LENGTH:]
    if not body.endswith(_DIGEST_LABEL):
        raise ValueError(f"{EXPECTED}; {path} does not end with a digest: it is incomplete, or another file")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{EXPECTED}; {path} was changed since it was written: its digest differs")
    try:
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, and its message suggests weights_only=False
        raise ValueError(f"{EXPECTED}; {path} holds more than tensors and plain values") from error
    if not isinstance(content, dict):
        raise ValueError(f"{EXPECTED}; {path} holds a {type(content).__name__}")  # noqa: TRY004 - not an argument's type
    return content


def write_settings(options: dict[str, Any], path: Path) -> None:
    """Writes `options` as YAML between two comments, by which a truncated file is detected."""
    text = f"{_FIRST}the last line ends them\n{yaml.safe_dump(options, sort_keys=False)}{_LAST}\n"
    files.write(path, text.encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the names and values in the YAML file at `path`.

    Raises:
        ValueError: if the file can't be read, is larger than 64 KiB, is truncated, is not a YAML mapping, or
            has two values under one name.
    """
    with reading(f"settings {path}"):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it must have at most {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        if text.startswith(_FIRST) and not text.splitlines()[-1].startswith(_LAST):
            raise ValueError(
                f"it is truncated: its first line needs a last line {_LAST!r}; remove or add one"
            )
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        names = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"it has two values under the name {short_repr(min(repeated))}; remove one")
        values = None if node is None else loader.construct_document(node)
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 - the file's content is wrong, not an argument's type
            f"settings {path} must hold names and values, got {type(values).__name__}"
        )
    return values


def one_line(error: Exception) -> str:
    """Returns the message of `error` on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
