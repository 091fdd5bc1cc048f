"""Settings files: YAML after a comment line that names the ``torchrun`` job; and errors on one line."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Record", "line", "read", "text"]

MOST_BYTES = 1 << 16
_FIRST = "# Settings of a hibana run: "


class Record(NamedTuple):
    """Contents of a settings file, and the job that wrote it; empty without ``torchrun``."""

    content: dict[str, Any]
    job: str


def text(content: dict[str, Any], job: str = "") -> str:
    """A settings file with `content`, written by `job`."""
    return f"{_FIRST}{job or 'none'}\n{yaml.safe_dump(content, sort_keys=False)}"


def read(path: Path) -> Record:
    """Contents of the file at `path`.

    Raises:
        ValueError: if it can't be read, is larger than 64 KiB, or is anything but YAML of names and values.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"settings {path} can't be read: {error.strerror}") from error
    if len(raw) > MOST_BYTES:
        raise ValueError(f"settings {path} must be at most {MOST_BYTES:,} bytes")
    try:
        written = raw.decode()
        content = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError for dates such as 2024-99-99
        raise ValueError(f"settings {path} must be YAML: {line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - it is the file's content that is wrong, not an argument's type
            f"settings {path} must hold names and values, got {type(content).__name__}"
        )
    job = written.partition("\n")[0].partition(_FIRST)[2]
    return Record(content, "" if job == "none" else job)


def line(error: Exception) -> str:
    """The message of `error`, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
