"""Snapshots of what an object holds, by type, and whether it has changed since.

A snapshot (a *look*) holds the identities of an object's parts, which must be kept alive with it.
"""

import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

Look = Callable[[Any], Hashable]
"""A snapshot function."""
Watch = tuple[Look, Any, Hashable]
"""A look, an object, and its snapshot."""
Item = tuple[Callable[[str, Any], Any], str, Any]
"""The ``get`` of a mapping, a name, and the value that it had."""

MISSING = object()


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


def held(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """Names of `tensors`, and all about them that a program depends on but their devices."""
    about = [None if t is None else (t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return (*tensors, *about)


def at_module(names: list[str]) -> Look:
    """The look at a module: the attributes `names`, its tensors but their values, the modules in it."""

    def look(module: nn.Module) -> Hashable:
        attributes, inner = vars(module), module._modules
        about = type(module), module.training, hooked(module)
        tensors = held(module._parameters), held(module._buffers)
        values = [id(attributes.get(name, MISSING)) for name in names]
        return *about, *attributes, *values, *tensors, *inner, ids(inner.values())

    return look


def at_function(function: types.FunctionType) -> Hashable:
    """The look at a function: its code, its defaults, the names of its attributes, and what it encloses."""
    parts = function.__code__, id(function.__defaults__), id(function.__kwdefaults__), *vars(function)
    return (*parts, *ids(enclosed_by(function))) if function.__closure__ else parts


def at_class(kind: type) -> Hashable:
    """The look at a class: its bases and the names of its attributes."""
    return kind.__mro__, *vars(kind)


def at_texts(value: types.FunctionType | type) -> tuple[Hashable, ...]:
    """The look at the names and the documentation of a function or a class."""
    return value.__name__, value.__qualname__, value.__module__, value.__doc__


def at_python_module(module: types.ModuleType) -> Hashable:
    """The look at a Python module: the names of its attributes."""
    return tuple(vars(module))


def at_tensor(tensor: Tensor) -> Hashable:
    """The look at a tensor that is not one of a cell's: all but its values, which are read at each call."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, *vars(tensor)


def at_dict(table: dict[Any, Any]) -> Hashable:
    """The look at a dictionary, its order included."""
    return ids(chain.from_iterable(table.items()))


def at_object(value: Any) -> Hashable:
    """The look at an object that holds nothing but attributes."""
    return type(value), *vars(value), ids(vars(value).values())


def enclosed_by(function: types.FunctionType) -> list[Any]:
    """The values of the variables that `function` encloses; MISSING for those without a value."""
    return [
        MISSING if cell == types.CellType() else cell.cell_contents for cell in function.__closure__ or ()
    ]


def ids(values: Iterable[Any]) -> tuple[int, ...]:
    """The identities of `values`: the look at a list or a set."""
    return tuple(map(id, values))
