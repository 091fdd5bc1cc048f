"""The text of a settings file: YAML between a first line that names the run and a last that ends it.

What people write by hand needs neither line. A file with the first is whole only with the last, and the last
tells whether anything between them was changed. Nothing is built of a text before its size, its depth and
its names are known, and names that stand for others (``&``, ``*``) are none of it.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Record", "line", "read", "shown", "text"]

MOST_BYTES = 1 << 16
DEEPEST = 8
_FIRST = "# Settings of a hibana run: "
_LAST = "# End of these settings: "


class Record(NamedTuple):
    """What a settings file says, the run that wrote it if one did, and whether it is as it was written."""

    content: dict[str, Any]
    run: str | None
    unchanged: bool


def text(content: dict[str, Any], run: str | None = None) -> str:
    """A settings file of `content`, written by `run`."""
    body = f"{_FIRST}{run or 'none'}\n{yaml.safe_dump(content, sort_keys=False)}"
    return f"{body}{_LAST}{_digest(body)}\n"


def read(path: Path) -> Record:
    """What the file at `path` says.

    Raises:
        ValueError: if it can't be read, was cut short, or is anything but YAML of names and values.
    """
    written = _written(path)
    run, unchanged = None, True
    if written.startswith(_FIRST):
        body, last = _split(written)
        if not re.fullmatch(rf"{_LAST}[0-9a-f]{{64}}\n", last):
            raise ValueError(
                f"settings {path} were cut short: the last line must be {_LAST.strip()!r} and a digest; "
                f"settings of your own need neither that line nor the first"
            )
        name = written.partition("\n")[0].removeprefix(_FIRST)
        run, unchanged = None if name == "none" else name, last == f"{_LAST}{_digest(body)}\n"
    try:
        _check(written)
        _check_names(yaml.compose(written, Loader=yaml.SafeLoader))
        content = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise ValueError(f"settings {path} must be YAML: {line(error)}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # of a date that is none, and such
        raise ValueError(f"settings {path} must be names and plain values: {line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - it is the file's content that is wrong, not an argument's type
            f"settings {path} must hold names and values, got {type(content).__name__}"
        )
    return Record(content, run, unchanged)


def shown(value: object) -> str:
    """`value` in a sentence: as Python writes it, if that is short."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 80 else f"{value[:80]!r}… ({len(value):,} characters)"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"a {type(value).__name__}"


def _check_names(node: yaml.Node | None) -> None:
    """Refuses two values under one name, of which YAML would take the last."""
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
        if name in seen:
            raise ValueError(f"{shown(name)} has two values")
        seen.add(name)


def line(error: Exception) -> str:
    """What an error says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _written(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"settings {path} can't be read: {error.strerror}") from error
    if len(raw) > MOST_BYTES:
        raise ValueError(f"settings {path} must be at most {MOST_BYTES:,} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"settings {path} must be YAML: {line(error)}") from error


def _split(written: str) -> tuple[str, str]:
    """All but the last line, and that."""
    begins = written[:-1].rfind("\n") + 1
    return written[:begins], written[begins:]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _check(written: str) -> None:
    """Goes through the text without building anything.

    Raises:
        ValueError: if it is deeper than settings are, names a thing twice, or a type.
    """
    depth = 0
    for event in yaml.parse(written, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("a value has a name (& or *), which settings have not")
        if getattr(event, "tag", None) is not None:
            raise ValueError("a value has a type (!), which settings have not")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"values are nested deeper than {DEEPEST}")
