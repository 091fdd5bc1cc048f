"""Guards for ``torch.compile``: which changes of a cell make it compile anew."""

from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported


def guard(cell: Cell, one: Tensor) -> None:
    """Makes Dynamo guard all that the step reads, so that it compiles again when that changes.

    Dynamo traces the step on `one` step of input, whose result is unused. It may turn a number into an input
    of its graph instead of a guard; the serialised step holds its value, so each number is compared as well.
    """
    cell(one, *cell.initial_state(one))
    for steps, number in settings(cell):
        if _at(cell, steps) != number:
            raise RuntimeError("a setting of the cell changed while its step was read")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch leaves it so
def settings(cell: Cell) -> tuple[tuple[tuple[tuple[str, Any], ...], float], ...]:
    """Each number that the step can read of `cell`, with the attributes and items that lead to it.

    Raises:
        Unsupported: if one lies where Dynamo does not look for changes.
    """
    numbers = []
    for path, number in dependencies_of(cell).numbers:
        if path.steps is None:
            raise Unsupported(
                f"torch.compile would not see a change of {path.text}; make it an attribute of the cell"
            )
        if _at(cell, path.steps) is number:  # else an attribute of the object hides its class's
            numbers.append((path.steps, number))
    return tuple(numbers)


def _at(value: Any, steps: tuple[tuple[str, Any], ...]) -> Any:
    for how, name in steps:
        value = getattr(value, name) if how == "attribute" else value[name]
    return value
