"""What commands say: refusals and failures, files that can't be written, and what takes a while."""

import sys
import threading
import time
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
    """Says on the screen, if it is one, what takes a while and how long it has; gone when that is done."""
    if not sys.stderr.isatty():
        yield
        return
    done, begun = threading.Event(), time.monotonic()

    def count() -> None:
        while not done.wait(1.0):
            print(f"\r{what} … {time.monotonic() - begun:.0f} s", end="", file=sys.stderr, flush=True)

    print(f"{what} …", end="", file=sys.stderr, flush=True)
    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        yield
    finally:
        done.set()
        counting.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)


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
