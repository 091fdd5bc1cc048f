"""Code of the user's, which a command was told to run: where Python looks for it."""

import sys
from collections.abc import Iterable

__all__ = ["reachable"]


def reachable(names: Iterable[str | None]) -> None:
    """Has Python look in the folder that one is in, if one of `names` is ``MODULE:NAME``.

    Not otherwise: what happens to lie there, under the name of something that is not installed, nobody named.
    """
    if any(name is not None and ":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, "")
