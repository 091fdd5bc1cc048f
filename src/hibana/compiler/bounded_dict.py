"""A bounded dictionary for caches that threads share."""

from threading import RLock
from typing import TypeVar

Key = TypeVar("Key")
Entry = TypeVar("Entry")

_LOCK = RLock()


class BoundedDict(dict[Key, Entry]):
    """A dictionary of at most `size` entries: a new entry evicts the oldest. Reading takes no lock."""

    def __init__(self, size: int) -> None:
        """Creates an empty dictionary."""
        super().__init__()
        self.size = size

    def __setitem__(self, key: Key, entry: Entry) -> None:
        """Stores `entry` under `key`, then deletes the oldest entries above the size."""
        with _LOCK:
            super().__setitem__(key, entry)
            while len(self) > self.size:
                del self[next(iter(self))]
