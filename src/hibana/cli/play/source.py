"""Compiles pasted text to a cell, and converts errors in it to messages. The text is executed."""

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import hibana
from hibana import cells
from hibana.cells import surrogate

FILE_NAME = "<your cell>"
"""Name of the pasted text in tracebacks."""
EXAMPLE = '''\
class Adaptive(hb.Cell):
    """Each spike raises the threshold."""

    def __init__(self, threshold=1.0, decay=0.9, rise=0.2):
        super().__init__()
        self.threshold = threshold
        self.decay = decay
        self.rise = rise

    def forward(self, input_, a_previous, v_previous, s_previous):
        a = self.decay * a_previous + self.rise * s_previous
        v = v_previous * (1 - s_previous) + input_
        return a, v, hb.surrogate.ATan()(v - self.threshold - a)
'''


class UserError(Exception):
    """A message for the user about input that can't be used."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Converts errors of a cell, which may be the user's, to a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(describe_error(error)) from error


def built_in() -> dict[str, type[cells.Cell]]:
    """Returns the cells of hibana by the names of their layers.

    >>> "LIF" in built_in()
    True
    """
    names = (name for name in sorted(cells.__all__) if name.endswith("Cell") and name != "Cell")
    return {name.removesuffix("Cell"): getattr(cells, name) for name in names}


def find(name: str, source: str | None = None) -> type[cells.Cell]:
    """Returns the built-in cell called `name`, or the last cell that the code `source` defines.

    Raises UserError if there is no such cell, or executing the code fails.
    """
    if source is None:
        cells_by_name = built_in()
        if name not in cells_by_name:
            raise UserError(f"cell must be one of {', '.join(cells_by_name)}; got {name!r}")
        return cells_by_name[name]
    linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(keepends=True), FILE_NAME)
    namespace = {"__name__": FILE_NAME, "hb": hibana, "hibana": hibana, "nn": torch.nn, "torch": torch}
    with user_errors():
        exec(compile(source, FILE_NAME, "exec"), namespace)  # noqa: S102 - the purpose of the text field
    classes = [v for v in namespace.values() if isinstance(v, type) and v.__module__ == FILE_NAME]
    cell_classes = [class_ for class_ in classes if issubclass(class_, cells.Cell)]
    if not cell_classes:
        names = ", ".join(class_.__name__ for class_ in classes) or "no class"
        raise UserError(f"the code must define a class that derives from hb.Cell; it defines {names}")
    return cell_classes[-1]


def make_cell(kind: type[cells.Cell], values: dict[str, Any]) -> cells.Cell:
    """Returns a cell with hyperparameters `values`; a surrogate is ``(name, {parameter: value})``."""
    return kind(
        **{
            name: type(surrogate.named(value[0]))(**value[1]) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
    )


def describe_error(error: BaseException) -> str:
    r"""Returns the error's name and message, and the line of the pasted text that raised it.

    Errors about values and types that the pasted text did not raise are hibana's sentences, without the name.

    >>> try:
    ...     find("", "x = 1\ny = missing")
    ... except UserError as error:
    ...     print(error)
    line 2: NameError: name 'missing' is not defined
    """
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == FILE_NAME]
    if isinstance(error, SyntaxError) and error.filename == FILE_NAME:
        lines = [error.lineno]
    if not lines and isinstance(error, ValueError | TypeError):
        return message
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"line {lines[-1]}: {text}" if lines else text
