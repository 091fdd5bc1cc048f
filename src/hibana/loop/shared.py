"""What programs are shared by, and the caches they are kept in, which are bounded and serve many threads.

Nothing that a cache lets go is lost to who runs it: programs hold their kernels, and these their code.
"""

from collections.abc import Iterable
from threading import RLock
from typing import Any, TypeVar

from hibana.loop.graph.plan import reachable
from hibana.loop.graph.step import Step, Value

__all__ = ["Bounded", "structure"]

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


def structure(step: Step) -> tuple[Any, ...]:
    """All of `step` that kernels are made of: equal for steps that differ in no more than their constants."""
    sides = [side for pair in step.outer for side in pair]
    gradients = (step.grad_input, *step.grad_states, *step.grad_sums, *sides)
    values = reachable(value for value in (*step.nexts, *gradients) if value is not None)
    place = {value: i for i, value in enumerate(values)}

    def places(of: Iterable[Value | None]) -> tuple[int | None, ...]:
        return tuple(None if value is None else place[value] for value in of)

    said = tuple((v.op, places(v.args), type(v.data), v.data, v.scalar) for v in values)
    counts = len(step.grad_sums), len(step.constants), step.parameters, step.matrices, len(step.outer)
    return step.states, said, places(step.nexts), places(gradients), counts
