"""The process that computes. Pasted code may hang, exit or crash in it, and the page stays.

The process holds no state that matters: a question carries all that it needs, so a new process answers as
the old one would have.
"""

import contextlib
import gc
import importlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from hibana.cli.play.source import Trouble, said

__all__ = ["Worker"]


class Worker:
    """Answers questions in a process of its own, one at a time.

    Args:
        limit: seconds for one answer, after which the process is ended.
    """

    def __init__(self, limit: float = 60.0) -> None:
        self.limit = limit
        self._process: Any = None
        self._connection: Connection | None = None
        self._changing = threading.Lock()  # a page's thread starts it, and may be doing so when all ends

    def ask(self, function: str, /, **question: Any) -> Any:
        """What ``module.name`` of this package answers to `question`.

        Raises:
            Trouble: what it refuses or fails with, or that it took too long or ended the process.
        """
        connection = self._started()
        try:
            connection.send((function, question))
            if not connection.poll(self.limit):
                self.close()
                raise Trouble(f"no answer within {self.limit:g} s; what ran was stopped")
            fine, result = connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise Trouble("the code ended the process that computes; it starts anew") from error
        if not fine:
            raise Trouble(result)
        return result

    def start(self) -> None:
        """Starts the process before the first question."""
        self._started()

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        with self._changing:
            if self._process is None:
                return
            self._process.kill()
            self._process.join()
            assert self._connection is not None
            self._connection.close()
            self._process = self._connection = None

    def _started(self) -> Connection:
        with self._changing:
            if self._process is None or not self._process.is_alive():
                spawning = multiprocessing.get_context("spawn")  # forked, it would share torch's threads
                connection, theirs = spawning.Pipe()
                process = spawning.Process(target=_answer, args=(theirs,), daemon=True)
                with _deaf():
                    process.start()
                theirs.close()
                self._process, self._connection = process, connection
            assert self._connection is not None
            return self._connection


@contextmanager
def _deaf() -> Iterator[None]:
    """What this thread starts within it does not hear Ctrl-C, from its first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # where there are no such masks it can't be imported

    resource_tracker.ensure_running()  # the first process starts it, and unblocks Ctrl-C meanwhile
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(connection: Connection) -> None:
    """Answers what comes through `connection` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the page's to answer
    import torch

    torch.set_num_threads(1)  # one neuron: threads would only wait for one another, and for the browser
    loaded = 0
    with contextlib.suppress(EOFError, OSError):  # the page is gone
        while True:
            if len(sys.modules) > loaded:
                loaded = len(sys.modules)
                gc.freeze()  # what was loaded stays: gone through while a slider waits, it costs 30 ms
            function, question = connection.recv()
            module, _, name = function.rpartition(".")
            try:
                call = getattr(importlib.import_module(f"hibana.cli.play.{module}"), name)
                result = (True, call(**question))
            except BaseException as error:  # pasted code may raise anything, and all of it is told
                result = (False, said(error))
            connection.send(result)
