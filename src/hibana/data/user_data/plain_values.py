"""Conversion between dataclasses and the plain values in a checkpoint."""

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain", "to_plain"]

Kind = TypeVar("Kind")
MOST = 1_000_000
"""Entries of a list, at most."""


def to_plain(value: Any) -> Any:
    """`value`, a frozen dataclass, as dictionaries, lists, texts and numbers."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    return [to_plain(each) for each in value] if isinstance(value, tuple) else value


def from_plain(kind: type[Kind], plain: Any) -> Kind:
    """The dataclass of type `kind` whose :func:`to_plain` is `plain`.

    Raises:
        ValueError: naming the entry, if an entry is missing, unknown, or of another type.
    """
    value = _from_plain(kind, plain, kind.__name__.lower())
    assert isinstance(value, kind)
    return value


def _from_plain(kind: Any, plain: Any, name: str) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = {field.name: field.default is MISSING for field in fields(kind)}  # others were added later
        required = {name for name, is_required in names.items() if is_required}
        if not isinstance(plain, dict) or not required <= set(plain) <= set(names):
            raise ValueError(f"{name} must have the entries {', '.join(hints)}")
        return kind(**{key: _from_plain(hints[key], plain[key], f"{name}.{key}") for key in plain})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        return None if plain is None else _from_plain(get_args(kind)[0], plain, name)
    if get_origin(kind) is tuple:
        if not isinstance(plain, list) or len(plain) > MOST:
            raise ValueError(f"{name} must be a list of at most {MOST:,}")
        return tuple(_from_plain(get_args(kind)[0], each, name) for each in plain)
    if type(plain) is not kind or (kind is float and not math.isfinite(plain)):
        raise ValueError(f"{name} must be a finite {kind.__name__}, got a {type(plain).__name__}")
    return plain
