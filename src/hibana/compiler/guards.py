"""Guards for ``torch.compile``: which changes of a cell make it compile anew."""

from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.fingerprint import followed
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import NOT_HYPER
from hibana.compiler.graph.watch import attributes


def guard(cell: Cell, one: Tensor) -> None:
    """Makes Dynamo guard all that the step reads, so that it compiles again when that changes.

    Dynamo traces the step on `one` step of input, whose result is unused. It may turn a number into an input
    of its graph instead of a guard; the serialised step holds its value, so each number is compared as well.
    """
    cell(one, *cell.initial_state(one))
    for path, number in settings(cell):
        found: Any = cell
        for how, name in path:
            found = getattr(found, name) if how == "attribute" else found[name]
        if found != number:
            raise RuntimeError("a setting of the cell changed while its step was read")


Path = tuple[tuple[str, Any], ...]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch leaves it so
def settings(cell: Cell) -> tuple[tuple[Path, float], ...]:
    """Each number that the step can read of `cell`, with the path of attributes and items to it.

    Raises:
        Unsupported: if one lies where Dynamo does not look for changes.
    """
    if unguarded := followed(cell).unguarded:
        raise Unsupported(
            f"torch.compile would not see a change of {unguarded}; make it an attribute of the cell"
        )
    found: list[tuple[Path, float]] = []
    _collect(cell, (), found, set())
    return tuple(found)


def _collect(value: Any, path: Path, found: list[tuple[Path, float]], seen: set[int]) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        found.append((path, value))
    plain = isinstance(value, int | float | str) and not hasattr(value, "__dict__")
    if plain or isinstance(value, Tensor | type | torch.dtype) or id(value) in seen:
        return
    seen.add(id(value))
    inner: list[tuple[tuple[str, Any], Any]]
    if isinstance(value, tuple | list):
        inner = [(("item", i), part) for i, part in enumerate(value)]
    elif isinstance(value, dict):
        inner = [(("item", key), part) for key, part in value.items() if isinstance(key, str | int)]
    elif isinstance(value, nn.Module):
        own = {name: part for name, part in vars(value).copy().items() if name not in NOT_HYPER}
        inner = [(("attribute", name), part) for name, part in {**own, **value._modules}.items()]
        inner += _of_class(value, own)
    elif callable(value) and getattr(value, "__closure__", None):
        enclosed: list[tuple[Path, float]] = []
        for cell in value.__closure__:
            _collect(cell.cell_contents, (), enclosed, seen)
        if enclosed:
            raise Unsupported(
                f"{value.__qualname__} encloses numbers, whose change torch.compile would not see; "
                "make them attributes"
            )
        return
    else:
        inner = []
    if not isinstance(value, nn.Module):
        own = dict(attributes(value))
        inner += [*((("attribute", name), part) for name, part in own.items()), *_of_class(value, own)]
    for step, part in inner:
        _collect(part, (*path, step), found, seen)


def _of_class(value: Any, own: dict[str, Any]) -> list[tuple[tuple[str, Any], Any]]:
    """The numbers among the attributes of the class of `value`, which has attributes of its `own`."""
    found = {name: part for kind in reversed(type(value).__mro__) for name, part in vars(kind).items()}
    return [
        (("attribute", name), part)
        for name, part in found.items()
        if type(part) in (int, float) and name not in own and not name.startswith("__")
    ]
