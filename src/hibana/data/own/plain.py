"""Between dataclasses and the plain values that a checkpoint holds: nothing is made of a file but these."""

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["made", "said"]

Kind = TypeVar("Kind")
MOST = 1_000_000
"""Entries of a list at most."""


def said(value: Any) -> Any:
    """`value`, a frozen dataclass, as dictionaries, lists, text and numbers."""
    if is_dataclass(value):
        return {field.name: said(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [said(each) for each in value]
    return value


def made(wanted: type[Kind], given: Any) -> Kind:
    """The `wanted` dataclass whose :func:`said` is `given`.

    Raises:
        ValueError: naming the entry, if there is one too many or too few, or of another type.
    """
    value = _made(wanted, given, wanted.__name__.lower())
    assert isinstance(value, wanted)
    return value


def _made(wanted: Any, given: Any, name: str) -> Any:
    if is_dataclass(wanted):
        types_of = get_type_hints(wanted)
        needed = {field.name for field in fields(wanted) if field.default is MISSING}  # others came later
        names = {field.name for field in fields(wanted)}
        if not isinstance(given, dict) or not needed <= set(given) <= names:
            raise ValueError(f"{name} must have the entries {', '.join(types_of)}")
        return wanted(**{key: _made(types_of[key], given[key], f"{name}.{key}") for key in given})  # type: ignore[operator]
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return None if given is None else _made(get_args(wanted)[0], given, name)
    if origin is tuple:
        if not isinstance(given, list) or len(given) > MOST:
            raise ValueError(f"{name} must be a list of at most {MOST:,}")
        return tuple(_made(get_args(wanted)[0], each, name) for each in given)
    if type(given) is not wanted or (wanted is float and not math.isfinite(given)):
        raise ValueError(f"{name} must be a finite {wanted.__name__}, got a {type(given).__name__}")
    return given
