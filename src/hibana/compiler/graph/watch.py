"""Snapshots of what an object holds, by type, and whether it has changed since.

A snapshot (a *look*) holds the identities of an object's parts, which must be kept alive with it.
"""

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property, lru_cache, partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from hibana.compiler.graph.code import native_bases

Look = Callable[[Any], Hashable]
"""A snapshot function."""
Watch = tuple[Look, Any, Hashable]
"""A look, an object, and its snapshot."""
Item = tuple[Callable[[str, Any], Any], str, Any]
"""The ``get`` of a mapping, a name, and the value that it had."""

PLAIN = frozenset({float, int, bool, str, types.NoneType})
"""Types whose values are constants."""
MISSING = object()


def _items(kind: Any) -> Callable[[Any], Iterator[Any]]:
    return lambda value: chain.from_iterable(kind.items(value))


CONTAINERS: dict[type, Callable[[Any], Iterable[Any]]] = {
    tuple: tuple.__iter__,
    list: list.__iter__,
    deque: lambda value: (value.maxlen, *deque.__iter__(value)),
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    dict: _items(dict),
    OrderedDict: _items(OrderedDict),
    defaultdict: lambda value: (value.default_factory, *_items(dict)(value)),
    slice: lambda value: (value.start, value.stop, value.step),
    partial: lambda value: (value.func, value.args, value.keywords),
    types.MethodType: lambda value: (value.__func__, value.__self__),
    types.MethodWrapperType: lambda value: (value.__self__, value.__name__),
    classmethod: lambda value: (value.__func__,),
    staticmethod: lambda value: (value.__func__,),
    property: lambda value: (value.fget,),
    cached_property: lambda value: (value.func,),
    types.SimpleNamespace: lambda _: (),
    object: lambda _: (),
}
"""What objects of a type written in C hold besides their attributes; subclasses hold the same."""
NUMBERS: dict[type, Callable[[Any], Any]] = {
    float: float.__pos__,
    int: int.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}
"""The constant in an object of a subclass of such a type."""


def unchanged(items: Iterable[Item], watched: Iterable[Watch]) -> bool:
    """Whether `items` are the same objects, and all snapshots of `watched` are equal."""
    for get, name, value in items:
        if get(name, MISSING) is not value:
            return False
    for look, value, before in watched:  # noqa: SIM110 - a generator would take as long as the looks
        if look(value) != before:
            return False
    return True


def hooked(module: nn.Module) -> bool:
    """Whether a call of `module` runs hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_fixed(value: Any) -> bool:
    """Whether `value` is immutable: a constant, a plain function, or a frozen dataclass of such."""
    if type(value) in PLAIN:
        return True
    if isinstance(value, types.FunctionType):
        return not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value))
    kind: type = type(value)
    rules = getattr(kind, "__dataclass_params__", None)
    if rules is None or not rules.frozen or native_bases(kind):
        return False
    named = {field.name for field in fields(value)}
    return getattr(value, "__dict__", {}).keys() == named and all(map(is_fixed, vars(value).values()))


def held(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """Names of `tensors`, and all about them that a program depends on but their devices."""
    about = [None if t is None else (t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return (*tensors, *about)


def at_module(names: list[str]) -> Look:
    """The look at a module: the attributes `names`, its tensors but their values, the modules in it."""

    def look(module: nn.Module) -> Hashable:
        own, inner = vars(module), module._modules
        about = type(module), module.training, hooked(module)
        tensors = held(module._parameters), held(module._buffers)
        values = [id(own.get(name, MISSING)) for name in names]
        return *about, *own, *values, *tensors, *inner, _ids(inner.values())

    return look


def at_function(function: types.FunctionType) -> Hashable:
    """The look at a function: its code, its defaults, and what it encloses."""
    given = function.__code__, function.__defaults__, function.__kwdefaults__
    return _ids((*given, *enclosed(function)) if function.__closure__ else given)


def at_tensor(tensor: Tensor) -> tuple[Hashable, ...]:
    """The look at a tensor that is no cell's: all but its values, which are read at each call."""
    about = tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad
    return *about, *vars(tensor), _ids(vars(tensor).values())


def at_array(array: Any) -> tuple[Hashable, ...]:
    """The look at an array of NumPy: its values."""
    return array.shape, str(array.dtype), array.tobytes()


def at_object(base: type) -> Look:
    """The look at an object whose type is written in Python, but for its `base`."""
    parts = CONTAINERS.get(base, CONTAINERS[object])

    def look(value: Any) -> Hashable:
        own = attributes(value)
        return type(value), _ids(parts(value)), *[name for name, _ in own], _ids(each for _, each in own)

    return look


def attributes(value: Any) -> list[tuple[str, Any]]:
    """The attributes of `value` itself: in its dictionary and in its slots."""
    kind: type = type(value)
    slots = [(slot.__name__, _in_slot(slot, value)) for slot in _slots(kind)]
    return [*getattr(value, "__dict__", {}).items(), *slots]


def enclosed(function: types.FunctionType) -> list[Any]:
    """What `function` encloses, variable by variable."""
    return [
        MISSING if cell == types.CellType() else cell.cell_contents for cell in function.__closure__ or ()
    ]


@lru_cache(maxsize=1024)
def _slots(kind: type) -> list[types.MemberDescriptorType]:
    bases = [base for base in kind.__mro__ if base not in native_bases(kind)]
    return [v for base in bases for v in vars(base).values() if isinstance(v, types.MemberDescriptorType)]


def _in_slot(slot: types.MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return MISSING


def _ids(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(id, values))
