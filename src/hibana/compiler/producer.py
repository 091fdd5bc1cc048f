"""A producer computes the inputs of a run piece by piece, so that they are consumed from the cache."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:  # whoever makes one has loaded it
    from hibana.runtime.kernels import Call


class Producer(NamedTuple):
    """A kernel that computes a sequence a piece at a time, each a stretch of the numbers of one step.

    Pieces are numbered as they lie in memory, those of one step before those of the next.
    """

    call: "Call"
    target: int
    """Which of its arguments says where the sequence begins."""
    pieces: int
    """Of a step."""
    length: int
    """Numbers of a piece."""
    into: Tensor
    """The sequence, or its steps joined; nothing was written to its memory yet."""

    def finish(self) -> None:
        """Computes all of it."""
        self.call.run(self.into.numel() // self.length)
