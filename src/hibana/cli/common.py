"""Parts that commands share: errors, progress on the terminal, and integer options."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import cyclopts


class Refusal(Exception):  # noqa: N818 - not an error of the program
    """A sentence that says why a command does not start; exit status 2."""


class Failure(Exception):  # noqa: N818 - like Refusal
    """A sentence that says why a command could not finish; exit status 1."""


@contextmanager
def refuse_errors() -> Iterator[None]:
    """Converts errors about arguments and files to a :class:`Refusal` of the same text."""
    try:
        yield
    except BrokenPipeError:  # the program that reads the output has ended
        raise
    except (OSError, TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    except RuntimeError as error:
        if type(error).__name__ != "Unsupported":  # importing that class would load the compiler
            raise
        raise Refusal(str(error)) from error


@contextmanager
def progress(activity: str) -> Iterator[None]:
    """Shows `activity`, such as ``reading digits``, on the terminal while the body of the ``with`` runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{activity} …")):
        yield


def allow_local_imports(names: Iterable[str | None]) -> None:
    """Lets Python import modules from the current folder if one of `names` is ``MODULE:NAME``.

    Otherwise Python must not: a file there could have the name of a package that is not installed.
    """
    if any(name is not None and ":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, "")


def _integer(kind: object, tokens: Sequence[cyclopts.Token]) -> int:
    """Parses an integer; cyclopts itself would round a number with a fraction."""
    (text,) = (token.value for token in tokens)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"it must be a whole number, got {text}") from None


Integer = Annotated[int, cyclopts.Parameter(converter=_integer)]
"""Type of an option that takes an integer."""
Trust = Annotated[tuple[str, ...], cyclopts.Parameter(show_default=False)]
"""Type of an option that names functions which a file may name."""
