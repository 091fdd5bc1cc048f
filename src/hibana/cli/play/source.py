"""From pasted text to a cell, and from errors in it to a message. The text is executed."""

import linecache
import traceback
from typing import Any

import torch

import hibana
from hibana import cells
from hibana.cells import surrogate

__all__ = ["EXAMPLE", "Trouble", "built_in", "describe_error", "find", "make_cell"]

NAME = "<your cell>"
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


class Trouble(Exception):  # noqa: N818 - shown to the user, not an error of the program
    """A message for the user about input that can't be used."""


def built_in() -> dict[str, type[cells.Cell]]:
    """The cells of hibana by their layers' names.

    >>> "LIF" in built_in()
    True
    """
    names = (name for name in sorted(cells.__all__) if name.endswith("Cell") and name != "Cell")
    return {name.removesuffix("Cell"): getattr(cells, name) for name in names}


def find(name: str, source: str | None = None) -> type[cells.Cell]:
    """The built-in cell called `name`, or the last cell that `source` defines.

    Raises:
        Trouble: if there is none, or executing the text fails; naming the error and the line.
    """
    if source is not None:
        return _execute(source)
    cells_by_name = built_in()
    if name not in cells_by_name:
        raise Trouble(f"cell must be one of {', '.join(cells_by_name)}; got {name!r}")
    return cells_by_name[name]


def _execute(source: str) -> type[cells.Cell]:
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    namespace = {"__name__": NAME, "hb": hibana, "hibana": hibana, "nn": torch.nn, "torch": torch}
    try:
        exec(compile(source, NAME, "exec"), namespace)  # noqa: S102 - the purpose of the text field
    except (Exception, SystemExit) as error:
        raise Trouble(describe_error(error)) from error
    classes = [each for each in namespace.values() if isinstance(each, type) and each.__module__ == NAME]
    own_cells = [each for each in classes if issubclass(each, cells.Cell)]
    if not own_cells:
        names = ", ".join(each.__name__ for each in classes) or "no class"
        raise Trouble(f"the code must define a class that derives from hb.Cell; it defines {names}")
    return own_cells[-1]


def make_cell(kind: type[cells.Cell], values: dict[str, Any]) -> cells.Cell:
    """The cell with hyper-parameters `values`; a surrogate is ``(name, {parameter: value})``.

    Raises:
        Trouble: with the message of the cell, or the surrogate, for a value that it refuses.
    """
    try:
        return kind(
            **{
                name: type(surrogate.named(value[0]))(**value[1]) if isinstance(value, tuple) else value
                for name, value in values.items()
            }
        )
    except Exception as error:  # a pasted cell may raise any
        plain = isinstance(error, ValueError | TypeError) and kind.__module__.startswith("hibana.")
        raise Trouble(str(error) if plain else describe_error(error)) from error


def describe_error(error: BaseException) -> str:
    r"""The error's name and message, and the line of the pasted text that raised it.

    >>> try:
    ...     find("", "x = 1\ny = missing")
    ... except Trouble as trouble:
    ...     print(trouble)
    line 2: NameError: name 'missing' is not defined
    """
    if isinstance(error, Trouble):
        return str(error)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == NAME:
        return f"line {error.lineno}: {text}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME]
    return f"line {lines[-1]}: {text}" if lines else text
