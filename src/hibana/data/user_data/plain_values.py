"""Conversion of the plain values in a checkpoint to frozen dataclasses, with a check of each entry."""

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST_ENTRIES = 1_000_000
"""Maximum length of a list."""


def from_plain(kind: Any, plain: Any, name: str) -> Any:
    """`plain`, made of dictionaries, lists, texts and numbers, as a value of type `kind`.

    Args:
        kind: a dataclass, ``tuple[X, ...]``, ``X | None``, ``str``, ``int``, ``float`` or ``bool``.
        plain: its plain value. Fields with a default may be missing.
        name: describes the value in messages.

    Raises:
        ValueError: naming the entry, if an entry is missing, unknown, or of another type.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        is_required = {field.name: field.default is MISSING for field in fields(kind)}
        required = {key for key in is_required if is_required[key]}
        if not isinstance(plain, dict) or not required <= set(plain) <= set(is_required):
            raise ValueError(f"{name} must have the entries {', '.join(hints)}")
        return kind(**{key: from_plain(hints[key], plain[key], f"{name}.{key}") for key in plain})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        return None if plain is None else from_plain(get_args(kind)[0], plain, name)
    if get_origin(kind) is tuple:
        if not isinstance(plain, list) or len(plain) > MOST_ENTRIES:
            raise ValueError(f"{name} must be a list of at most {MOST_ENTRIES:,}")
        return tuple(from_plain(get_args(kind)[0], item, name) for item in plain)
    if type(plain) is not kind or (kind is float and not math.isfinite(plain)):
        raise ValueError(f"{name} must be a finite {kind.__name__}, got a {type(plain).__name__}")
    return plain
