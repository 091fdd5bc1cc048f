"""Reading of settings files, and error messages on one line."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 16


def read(path: Path) -> dict[str, Any]:
    """Returns the names and values in the YAML file at `path`.

    Raises:
        ValueError: if the file can't be read, is larger than 64 KiB, or is not a YAML mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"settings {path} can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"settings {path} must be at most {MAX_BYTES:,} bytes")
    try:
        values = yaml.safe_load(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError for dates such as 2024-99-99
        raise ValueError(f"settings {path} must be YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 - the file's content is wrong, not an argument's type
            f"settings {path} must hold names and values, got {type(values).__name__}"
        )
    return values


def one_line(error: Exception) -> str:
    """Returns the message of `error` on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
