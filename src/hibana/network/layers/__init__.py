"""Kinds of layers, one file each, and their only table, ``LAYERS``, built from the files of this folder.

A new kind is a file with a subclass of :class:`LayerKind`; :func:`register` adds a kind from elsewhere.
"""

import importlib
import pkgutil
from typing import Any

from torch import nn

from hibana.network.layers.base import Call, LayerKind, Operations

__all__ = ["LAYERS", "Call", "LayerKind", "Operations", "kind_of", "kind_of_function"]
__all__ += ["register"]

LAYERS: dict[str, LayerKind] = {}
"""Each kind by its name."""


def register(kind: LayerKind) -> None:
    """Adds `kind` to the table; raises ValueError if another kind has its name."""
    if kind.name in LAYERS:
        raise ValueError(f"name must be new among kinds of layers, got {kind.name!r}")
    LAYERS[kind.name] = kind


def kind_of(module: nn.Module | None) -> LayerKind | None:
    """The kind of `module`, the last registered if several match; None if no kind has its class."""
    return next((kind for kind in reversed(LAYERS.values()) if isinstance(module, kind.types)), None)


def kind_of_function(target: Any) -> LayerKind | None:
    """The kind of a function, or of the tensor method with this name; None if no kind has it."""
    return next((kind for kind in LAYERS.values() if target in kind.functions), None)


for _file in pkgutil.iter_modules(__path__):
    for _value in vars(importlib.import_module(f"{__name__}.{_file.name}")).values():
        is_kind = isinstance(_value, type) and issubclass(_value, LayerKind) and hasattr(_value, "name")
        if is_kind and _value.__module__ == f"{__name__}.{_file.name}":
            register(_value())
