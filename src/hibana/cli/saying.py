"""What commands say: refusals and failures, files that can't be written, and what takes a while."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

__all__ = ["Failure", "Refusal", "doing", "refusing", "saved", "unwritable", "writable"]


class Refusal(Exception):  # noqa: N818 - not an error of the program: something it won't do
    """What a command won't do, in a sentence for the person who asked."""


class Failure(Exception):  # noqa: N818 - beside Refusal
    """Why a command that had begun could not finish, in a sentence."""


@contextmanager
def refusing() -> Iterator[None]:
    """What the library refuses inside, the command refuses, in the same words."""
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
    """Shows `what` on standard error while the body runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{what} …")):
        yield


def writable(folder: Path) -> Path:
    """`folder`, made if it is not there.

    Raises:
        Refusal: if nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> Refusal:
    """What to say of a folder that can't be written."""
    return Refusal(f"--out must be a folder that can be written, got {folder}: {error.strerror}")


def saved(figure: Any, path: Path) -> Path:
    """`path`, at which the figure now is."""
    figure.savefig(path)
    return path
