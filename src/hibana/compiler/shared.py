"""A bounded dictionary for caches that threads share.

Nothing that a cache lets go is lost to who runs it: programs hold their kernels, and these their code.
"""

from threading import RLock
from typing import TypeVar

__all__ = ["Bounded"]

Key = TypeVar("Key")
Entry = TypeVar("Entry")

_CHANGING = RLock()


class Bounded(dict[Key, Entry]):
    """A dictionary of at most `size` entries: the oldest goes for one more.

    It is read without a lock, so it can't follow what was read last; what is let go is made again.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, key: Key, entry: Entry) -> None:
        with _CHANGING:
            super().__setitem__(key, entry)
            while len(self) > self.size:
                del self[next(iter(self))]
