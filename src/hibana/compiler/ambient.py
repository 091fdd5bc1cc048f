"""The :func:`hibana.run` that a layer is called within, if any: one for each thread and task of asyncio."""

from contextvars import ContextVar
from threading import Lock
from typing import Any

active = False
"""Whether any thread is within a run: a cheap check, and one that Dynamo can guard."""

_COUNTING = Lock()
_count = 0
_CURRENT: ContextVar[Any] = ContextVar("hibana.run", default=None)


def current() -> Any:
    """The run that this call is within, or None."""
    return _CURRENT.get()


class Within:
    """What this thread calls in the ``with`` block is within `run`, or, if that is None, within none.

    Each layer of a run enters one, so it is a class: a generator takes three times as long.
    """

    __slots__ = ("_run", "_token")

    def __init__(self, run: Any) -> None:
        self._run = run

    def __enter__(self) -> None:
        _counted(1)
        self._token = _CURRENT.set(self._run)

    def __exit__(self, *raised: object) -> None:
        _counted(-1)  # first: a block that is left in another context than it was entered in raises
        _CURRENT.reset(self._token)


def _counted(change: int) -> None:
    global _count, active
    with _COUNTING:
        _count += change
        active = _count > 0
