"""Numbers as they are typed."""

from collections.abc import Sequence
from typing import Annotated

import cyclopts

__all__ = ["Whole"]


def _whole(kind: object, tokens: Sequence[cyclopts.Token]) -> int:
    """A whole number; one with a fraction would be rounded in silence."""
    (given,) = (token.value for token in tokens)
    try:
        return int(given)
    except ValueError:
        raise ValueError(f"it must be a whole number, got {given}") from None


Whole = Annotated[int, cyclopts.Parameter(converter=_whole)]
"""An option that takes a whole number."""
