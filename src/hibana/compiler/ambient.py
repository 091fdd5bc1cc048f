"""The :func:`hibana.run` that a layer is called within, if any: one for each thread and task of asyncio."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def within(run: Any) -> Iterator[None]:
    """What this thread calls is within `run`, or, if that is None, within none."""
    _counted(1)
    token = _CURRENT.set(run)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        _counted(-1)


def _counted(change: int) -> None:
    global _count, active
    with _COUNTING:
        _count += change
        active = _count > 0
