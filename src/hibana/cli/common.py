"""Errors of commands, progress on the terminal, and code that the user names."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import cyclopts

__all__ = ["Failure", "Refusal", "Integer", "doing", "reachable", "refusing", "unwritable", "writable"]


class Refusal(Exception):  # noqa: N818 - not an error of the program: something it won't do
    """Why a command does not start, as a sentence; exit status 2."""


class Failure(Exception):  # noqa: N818 - beside Refusal
    """Why a command could not finish, as a sentence; exit status 1."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turns errors of the library about arguments and files into a :class:`Refusal` with the same message."""
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise Refusal(str(error)) from error
    except RuntimeError as error:
        if type(error).__name__ != "Unsupported":  # not imported: it would load all of the loop
            raise
        raise Refusal(str(error)) from error


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows `what` on standard error, if that is a terminal, while the body runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{what} …")):
        yield


def writable(folder: Path) -> Path:
    """`folder`, created if it is missing.

    Raises:
        Refusal: if no file can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> Refusal:
    """The refusal of a folder that can't be written."""
    return Refusal(f"--out must be a folder that can be written, got {folder}: {error.strerror}")


def reachable(names: Iterable[str | None]) -> None:
    """Lets Python import from the current folder if one of `names` is ``MODULE:NAME``.

    Otherwise it must not: a file there could have the name of a package that is not installed.
    """
    if any(name is not None and ":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, "")


def _integer(kind: object, tokens: Sequence[cyclopts.Token]) -> int:
    """An integer; cyclopts itself would round a number with a fraction."""
    (text,) = (token.value for token in tokens)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"it must be a whole number, got {text}") from None


Integer = Annotated[int, cyclopts.Parameter(converter=_integer)]
"""An option that takes an integer."""
