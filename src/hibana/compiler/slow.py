"""The warning where the reference loop runs a call that no compiled backend serves."""

import warnings


class SlowPathWarning(RuntimeWarning):
    """A call that the reference loop runs, step by step, since no compiled backend serves it; and why."""


_SAID: set[str] = set()


def said_once(cell: str, reason: str) -> None:
    """Warns, once for each `reason`, that calls of a cell of the class called `cell` are run by the loop."""
    text = f"{cell} is run by the reference loop, step by step and many times slower, because {reason}"
    if text not in _SAID:
        warnings.warn(text, SlowPathWarning, stacklevel=2)
        _SAID.add(text)  # not before: who makes warnings errors has each one
