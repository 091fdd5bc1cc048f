"""What decides the program of a cell: two cells of one fingerprint are served by one program.

It holds everything that a step can read of its cell, however nested, but the values of the cell's tensors,
which are arguments of a kernel. What can't be followed is refused, never guessed. Attributes of a class
and global variables are no hyper-parameters: a step is read once, and what it found there stays.
"""

import random
import sys
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from hibana.loop.graph.ops import Unsupported

__all__ = [
    "NOT_HYPER",
    "PLAIN",
    "fingerprint",
    "held",
    "hooked",
    "is_fixed",
    "random_state",
    "surroundings",
    "taken_as_they_are",
]

NOT_HYPER = frozenset(vars(nn.Module())) | {"made", "states"}
"""Attributes of a cell that no step computes with."""
MANY = 1000
"""Parts of a global variable that are looked at."""
PLAIN = (float, int, bool, str, type(None))


class _Same:
    """Equal to itself alone; it keeps its object alive, so that no other gets its place in memory."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(module: nn.Module, within: tuple[int, ...] = ()) -> Hashable:
    """Everything that decides what a cell, or a module in it, computes, but the values of its tensors.

    Args:
        module: the cell.
        within: the identities of what it lies in, which may in turn lie in it.

    Raises:
        Unsupported: if it holds something that can change unseen, or hooks.
    """
    if hooked(module):
        raise Unsupported(f"hooks on {type(module).__name__} are to run at each step")
    modules = [] if within else [name for name, _ in module.named_modules()]  # one of two names once
    within = within or (id(module),)
    own = vars(module).copy()  # another thread may remember its first call there
    hyper = [name for name in own if name not in NOT_HYPER]
    values = list(map(own.__getitem__, hyper))
    plain = [_exact(v) if type(v) in PLAIN else _of(v, within) for v in values]
    tensors = (held(module._parameters), held(module._buffers))  # apart: AtLeast tells one from the other
    inner = [(name, _of(child, within)) for name, child in module._modules.items()]
    return (type(module), module.training, *hyper, *map(type, values), *plain, *tensors, *inner, *modules)


def hooked(module: nn.Module) -> bool:
    """Whether a call of `module` runs hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_fixed(value: Any) -> bool:
    """Whether nothing can change what `value` does unseen: a number, or a frozen dataclass of such."""
    if isinstance(value, PLAIN):
        return True
    if isinstance(value, FunctionType):
        return not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value))
    rules = getattr(type(value), "__dataclass_params__", None)
    if rules is None or not rules.frozen:
        return False
    named = {field.name for field in fields(value)}
    return vars(value).keys() == named and all(map(is_fixed, vars(value).values()))


def held(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """Names of `tensors`, and all about them that a program depends on: not their values."""
    about = [None if t is None else (t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return (*tensors, *about)


def _exact(value: Any) -> Any:
    """`value`, or what tells minus zero from zero and finds one NaN equal to another."""
    return repr(value) if isinstance(value, float) and (value == 0 or value != value) else value


def taken_as_they_are(module: nn.Module) -> list[object]:
    """What `module` holds, however nested, that is known by its identity: tensors, and what hides its parts.

    Raises:
        Unsupported: as :func:`fingerprint`.
    """
    found: list[object] = []
    waiting: list[Any] = [fingerprint(module)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            waiting += part
        elif isinstance(part, _Same):
            found.append(part.value)
    return found


def surroundings(module: nn.Module) -> Hashable:
    """What a step of `module` could change: what it holds, and global variables that its code names.

    What can't be followed is left out.
    """
    try:
        held: Hashable = fingerprint(module)
    except Unsupported:
        held = None
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "hibana."))]
    waiting = [part for kind in kinds for part in vars(kind).values() if isinstance(part, FunctionType)]
    known = {id(function) for function in waiting}
    variables: dict[str, Hashable] = {}
    while waiting:
        function = waiting.pop()
        for name in _named_in(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType):
                if value.__module__ == function.__module__ and id(value) not in known:
                    known.add(id(value))
                    waiting.append(value)
            elif isinstance(value, (*PLAIN, list, dict, set, deque)):
                variables[f"{function.__module__}.{name}"] = _brief(value)
    return held, tuple(variables.items())


def _named_in(code: CodeType) -> list[str]:
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _named_in(part)]
    return [*code.co_names, *inner]


def _brief(value: Any) -> Hashable:
    """What tells whether a global variable was changed; of a large one its size alone."""
    if not isinstance(value, PLAIN) and len(value) > MANY:
        return len(value)
    try:
        return _of(value, ())
    except Unsupported:
        return None


def random_state() -> Hashable:
    """The state of the generators of random numbers that Python and NumPy share among all."""
    # NumPy loads them when they are first touched: until then nobody has drawn any.
    numbers = sys.modules.get("numpy.random")
    drawn = numbers.get_state()[1:3] if numbers else ((), 0)
    return random.getstate(), tuple(drawn[0]), drawn[1]


def _of(value: Any, within: tuple[int, ...]) -> Hashable:
    if isinstance(value, PLAIN):
        return (type(value), _exact(value))
    if isinstance(value, _Same | type | BuiltinFunctionType | CodeType):
        return value
    if isinstance(value, Tensor):
        return _Same(value)
    if id(value) in within:
        return within.index(id(value))
    within = (*within, id(value))
    if isinstance(value, nn.Module):
        return fingerprint(value, within)
    return (type(value), *(_of(part, within) for part in _parts(value)))


def _parts(value: Any) -> list[Any]:
    """What `value` is made of: all that can change what it does."""
    if isinstance(value, tuple | list | deque):
        return list(value)
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return [
            value.__code__,
            _Same(value.__globals__),
            value.__defaults__,
            value.__kwdefaults__,
            *enclosed,
        ]
    return _attributes(value)


def _attributes(value: Any) -> list[Any]:
    kinds = [kind for kind in type(value).__mro__ if "__slots__" in vars(kind)]
    slots = [name for kind in kinds for name in _names(vars(kind)["__slots__"]) if hasattr(value, name)]
    if kinds or hasattr(value, "__dict__"):
        own = getattr(value, "__dict__", {})
        return [*own, *own.values(), *slots, *(getattr(value, name) for name in slots)]
    if type(value).__hash__ is None:
        raise Unsupported(f"a hyper-parameter of type {type(value).__name__} can change unseen")
    return [_Same(value)]


def _names(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else [name for name in slots if name != "__dict__"]
