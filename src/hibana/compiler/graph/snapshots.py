"""Snapshots of the objects that a step reads, to detect whether any of them has changed.

Snapshots hold the ids of an object's parts, so whoever keeps a snapshot must keep the parts alive.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hibana.compiler.graph.objects import parts_of

TakeSnapshot = Callable[[Any], Hashable]
"""A function that takes the snapshot of an object."""
Snapshot = tuple[TakeSnapshot, Any, Hashable]
"""The function, the object, and its snapshot."""
Item = tuple[Callable[[str, Any], Any], str, Any]
"""The ``get`` method of a mapping, a key, and the value that the mapping had for it."""

MISSING = object()
"""The value of an :data:`Item` whose mapping lacks the key."""


def is_unchanged(items: Iterable[Item], snapshots: Iterable[Snapshot]) -> bool:
    """Whether all mappings have the same objects as `items`, and all objects equal their `snapshots`."""
    for get, name, value in items:
        if get(name, MISSING) is not value:
            return False
    for take, value, before in snapshots:  # noqa: SIM110 - a generator would take as long as the comparisons
        if take(value) != before:
            return False
    return True


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs hooks that are registered on it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def tensor_properties(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """The names, shapes, dtypes and ``requires_grad`` of `tensors`."""
    properties = [None if t is None else (t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return (*tensors, *properties)


def module_snapshots(names: list[str]) -> TakeSnapshot:
    """A function that takes snapshots of modules: attributes `names`, inner modules, tensor properties."""

    def take(module: nn.Module) -> Hashable:
        """The snapshot of `module`, which is equal to another one unless something has changed."""
        attributes, inner = vars(module), module._modules
        tensors = tensor_properties(module._parameters), tensor_properties(module._buffers)
        values = [id(attributes.get(name, MISSING)) for name in names]
        header = type(module), module.training, has_hooks(module)
        return *header, *attributes, *values, *tensors, *inner, *map(id, inner.values())

    return take


def namespace_snapshot(namespace: Any) -> Hashable:
    """The snapshot of a class or Python module: names of its attributes, and the bases of a class."""
    return getattr(namespace, "__mro__", None), *vars(namespace)


def tensor_snapshot(tensor: Tensor) -> Hashable:
    """The snapshot of a tensor that is no parameter or buffer: everything but its values."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, *vars(tensor)


def parts_snapshot(value: Any) -> Hashable:
    """The snapshot of an object with :func:`parts_of`."""
    parts = parts_of(value)
    return None if parts is None else (type(value), *parts, *map(id, parts.values()))
