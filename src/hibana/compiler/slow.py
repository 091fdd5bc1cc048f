"""The warning where a call runs slower than it could: by the reference loop, or beside layers of torch's."""

import warnings

__all__ = ["SlowPathWarning", "said_once", "warn_once"]


class SlowPathWarning(RuntimeWarning):
    """A call that runs slower than it could, and why.

    Either the reference loop runs it, step by step, since no compiled backend serves it; or the network has
    layers of ``torch.nn`` that :func:`hibana.optimize` would change.
    """


_SAID: set[str] = set()


def said_once(cell: str, reason: str) -> None:
    """Warns, once for each `reason`, that calls of a cell of the class called `cell` are run by the loop."""
    text = f"{cell} is run by the reference loop, step by step and many times slower, because {reason}"
    warn_once(text, text)


def warn_once(key: str, text: str) -> None:
    """Warns of `text`, unless a warning of this `key` was given before."""
    if key not in _SAID:
        warnings.warn(text, SlowPathWarning, stacklevel=3)
        _SAID.add(key)  # not before: who makes warnings errors has each one
