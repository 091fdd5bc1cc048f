"""Guards for ``torch.compile``: changes of a cell that make Dynamo compile it again."""

import re
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported

_ATTRIBUTE_PATH = re.compile(r"self((?:\.\w+)+)")
"""Matches a path of attributes that starts at the cell, such as ``self.surrogate.alpha``."""


def guard(cell: Cell, one_step: Tensor) -> None:
    """Makes Dynamo guard everything that the step reads, so that it compiles again when any of it changes.

    Dynamo traces a call of `cell` on `one_step`, whose result is unused. Dynamo may turn a number into an
    input of its graph instead of guarding it; the serialized step contains its value, so each number is also
    compared with that value.
    """
    cell(one_step, *cell.initial_state(one_step))
    for path, number in settings(cell):
        if _attribute(cell, path) != number:
            raise RuntimeError(f"self.{path} changed while the step of the cell was traced")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch has no types for it
def settings(cell: Cell) -> tuple[tuple[str, float], ...]:
    """Path and value of each number that the step can read, with paths such as ``surrogate.alpha``.

    Raises:
        Unsupported: if a number is not an attribute of the cell or of its attributes.
    """
    numbers = []
    for path, number in dependencies_of(cell).numbers:
        match = _ATTRIBUTE_PATH.fullmatch(path)
        if match is None:
            raise Unsupported(
                f"torch.compile would not detect a change of {path}; make it an attribute of the cell"
            )
        attributes = match[1].removeprefix(".")
        if _attribute(cell, attributes) is number:  # false for a class attribute that the object overrides
            numbers.append((attributes, number))
    return tuple(numbers)


def _attribute(value: Any, path: str) -> Any:
    """The attribute of `value` at a dotted `path`."""
    for name in path.split("."):
        value = getattr(value, name)
    return value
