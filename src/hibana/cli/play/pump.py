"""Questions from a page to the worker: the latest is answered, those that came meanwhile are dropped.

A slider asks up to sixty times a second. Were each question answered in turn, the page would lag behind the
hand; so while one is being computed only the newest is kept.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from hibana.cli.play.source import Trouble
from hibana.cli.play.worker import Worker

__all__ = ["Pump"]

SLOW = 0.4
"""Seconds without an answer after which the page says so."""


class Pump:
    """Asks for one page.

    Args:
        worker: who answers.
        threads: where waiting for it happens; one thread, shared by all pages.
        later: runs a function with the page's document in hand.
        waiting: told whether an answer is slow in coming.
    """

    def __init__(
        self,
        worker: Worker,
        threads: ThreadPoolExecutor,
        later: Callable[[Callable[[], None]], Any],
        waiting: Callable[[bool], None],
    ) -> None:
        self._worker, self._threads, self._later, self._waiting = worker, threads, later, waiting
        self._next: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, function: str, then: Callable[[Any], None], /, **question: Any) -> None:
        """Asks `function`, and hands its answer, or the :class:`Trouble`, to `then`."""
        self._next.pop(function, None)
        self._next[function] = (question, then)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._next:
            function = next(iter(self._next))
            question, then = self._next.pop(function)
            asked = asyncio.get_running_loop().run_in_executor(
                self._threads, partial(_outcome, self._worker, function, question)
            )
            done, _ = await asyncio.wait([asked], timeout=SLOW)
            if not done:
                self._later(partial(self._waiting, True))
            answer = await asked
            if not done:
                self._later(partial(self._waiting, False))
            self._later(partial(then, answer))


def _outcome(worker: Worker, function: str, question: dict[str, Any]) -> Any:
    try:
        return worker.ask(function, **question)
    except Trouble as trouble:
        return trouble
