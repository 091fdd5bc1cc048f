"""Snapshots of the objects that a step reads, and whether they have changed since.

A snapshot (a *look*) holds the identities of an object's parts, which must be kept alive with it.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hibana.compiler.graph.objects import parts_of

Look = Callable[[Any], Hashable]
"""A snapshot function."""
Watch = tuple[Look, Any, Hashable]
"""A look, an object, and its snapshot."""
Item = tuple[Callable[[str, Any], Any], str, Any]
"""The ``get`` of a mapping, a name, and the value that it had."""

MISSING = object()


def is_unchanged(items: Iterable[Item], watched: Iterable[Watch]) -> bool:
    """Whether `items` are the same objects, and all snapshots of `watched` are equal."""
    for get, name, value in items:
        if get(name, MISSING) is not value:
            return False
    for look, value, before in watched:  # noqa: SIM110 - a generator would take as long as the looks
        if look(value) != before:
            return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def tensor_properties(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """Names of `tensors`, and all about them that a program depends on but their devices."""
    about = [None if t is None else (t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return (*tensors, *about)


def at_module(names: list[str]) -> Look:
    """The look at a module: the attributes `names`, its tensors but their values, the modules in it."""

    def look(module: nn.Module) -> Hashable:
        attributes, inner = vars(module), module._modules
        about = type(module), module.training, has_hooks(module)
        tensors = tensor_properties(module._parameters), tensor_properties(module._buffers)
        values = [id(attributes.get(name, MISSING)) for name in names]
        return *about, *attributes, *values, *tensors, *inner, *map(id, inner.values())

    return look


def at_names(value: Any) -> Hashable:
    """The look at a class or a Python module: the names of its attributes, and the bases of a class."""
    return getattr(value, "__mro__", None), *vars(value)


def at_tensor(tensor: Tensor) -> Hashable:
    """The look at a tensor that is not one of a cell's: all but its values, which are read at each call."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, *vars(tensor)


def at_parts(value: Any) -> Hashable:
    """The look at an object that :func:`parts_of` takes apart."""
    parts = parts_of(value)
    return None if parts is None else (type(value), *parts, *map(id, parts.values()))
