"""What programs are shared by, and the caches they are kept in, which are bounded and serve many threads.

Nothing that a cache lets go is lost to who runs it: programs hold their kernels, and these their code.
"""

from collections.abc import Iterable
from threading import RLock
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from hibana.loop.plan import reachable
from hibana.loop.trace import Step, Value

__all__ = ["Bounded", "detached", "structure"]

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
    gradients = (step.grad_input, *step.grad_states, *step.grad_sums)
    values = reachable(value for value in (*step.nexts, *gradients) if value is not None)
    place = {value: i for i, value in enumerate(values)}

    def places(of: Iterable[Value | None]) -> tuple[int | None, ...]:
        return tuple(None if value is None else place[value] for value in of)

    said = tuple((v.word, places(v.args), type(v.data), v.data, v.scalar) for v in values)
    counts = len(step.grad_sums), len(step.constants), step.parameters
    return step.states, said, places(step.nexts), places(gradients), counts


def detached(module: Any) -> Any:
    """A copy of `module` that holds the same tensors, which may be put in others' place there.

    So a step is traced, while other threads may run it. What holds no tensors is no copy.
    """
    if not (module._parameters or module._buffers or module._modules):
        return module
    return _copied(module, {})


def _copied(value: Any, done: dict[int, Any]) -> Any:
    """`value` with its modules copied, and the containers that they lie in."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, nn.Module):
        module = done[id(value)] = type(value).__new__(type(value))
        vars(module).update({name: _copied(part, done) for name, part in vars(value).items()})
        return module
    if type(value) is dict:
        held: dict[Any, Any] = {}
        done[id(value)] = held
        held.update({key: _copied(part, done) for key, part in value.items()})
        return held
    if type(value) is list:
        parts: list[Any] = []
        done[id(value)] = parts
        parts.extend(_copied(part, done) for part in value)
        return parts
    if type(value) is tuple:
        return tuple(_copied(part, done) for part in value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _copied(value.__self__, done))
    return value
