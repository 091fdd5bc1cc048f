"""Classifies Python objects that a step reads: those that never change, and the contents of others."""

import inspect
import struct
import sys
import types
from collections import namedtuple
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from hibana.runtime import torch_internals

PLAIN = frozenset({float, int, bool, str, types.NoneType})
"""Types of hyperparameters whose values are constants."""
CONSTANT = PLAIN | {
    *(complex, bytes, range, types.CodeType, types.EllipsisType, types.NotImplementedType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    type(vars(namedtuple("_Named", "field"))["field"]),
}
"""Types whose values are immutable and compared by ``==``."""
UNCHANGED_PACKAGES = {
    *("hibana", "numpy", "torch", "_collections_abc", "_functools", "_operator", "abc", "cmath"),
    *("collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math", "numbers"),
    *("operator", "reprlib", "types", "typing"),
}
"""Packages whose functions and classes do the same at each call, except functions that read a state."""
_READS_STATE = {
    *("_get_extobj_dict", "getbufsize", "geterr", "geterrcall", "get_printoptions", "numpy.random"),
    *("__import__", "breakpoint", "compile", "eval", "exec", "globals", "id", "input", "open"),
}
"""Functions of NumPy and Python whose result depends on a global state, as all of ``numpy.random``."""
_OPERATIONS = {"OpOverload", "OpOverloadPacket", "ScriptFunction", "_ArrayFunctionDispatcher", "ufunc"}
"""Names of the types of functions of torch and NumPy."""
_HEAP_TYPE = 1 << 9
"""The bit of a class's ``__flags__`` that Python's code sets for classes that it makes."""
_DESCRIPTORS = types.ClassMethodDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType
MISSING = object()
"""Stands for an attribute or variable that does not exist."""


def root(name: object) -> str:
    """The package of the module called `name`: ``torch`` for ``torch.nn.functional``."""
    return str(name).partition(".")[0]


def does_not_change(value: Any) -> bool:
    """Whether `value` is a function, class or module of a package that does the same at each call."""
    kind: type = type(value)
    module: Any = None
    if isinstance(value, types.ModuleType):
        module = value.__name__
    elif isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
    elif isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        if isinstance(owner, types.ModuleType):
            module = owner.__name__
        elif owner is None or isinstance(owner, type):
            module = getattr(owner, "__module__", None) or value.__module__
    elif isinstance(value, type):
        # `exec` without a name of the module makes classes whose module is "builtins"
        is_from_exec = value.__module__ == "builtins" and value.__flags__ & _HEAP_TYPE
        module = None if is_from_exec else value.__module__
    elif isinstance(value, _DESCRIPTORS):
        module = value.__objclass__.__module__
    elif kind.__name__ in _OPERATIONS:
        module = kind.__module__
    is_constant = module == "builtins" or root(module) in UNCHANGED_PACKAGES
    return is_constant and not reads_state(value)


def reads_state(value: Any) -> bool:
    """Whether `value` is a function of torch, NumPy or Python that reads or sets a state of the process.

    In torch, these are the functions of :data:`torch_internals.STATE`, and functions in Python that read a
    variable or attribute and can be called without an argument.
    """
    if isinstance(value, types.BuiltinFunctionType) and value.__self__ is torch_internals.STATE:
        return True
    function = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    if isinstance(function, types.FunctionType) and root(function.__globals__.get("__name__")) == "torch":
        code = function.__code__
        optional = len(function.__defaults__ or ()) + len(function.__kwdefaults__ or ())
        takes_none = code.co_argcount + code.co_kwonlyargcount == optional
        is_closure = bool(code.co_freevars)  # whose variables are compared
        return bool(code.co_names) and takes_none and not (is_closure or code.co_flags & inspect.CO_VARARGS)
    return getattr(value, "__name__", "") in _READS_STATE


def exact(value: Any) -> Any:
    """`value`, or the bits of a float or complex number, so that ``0.0 != -0.0`` and ``nan == nan``."""
    return struct.pack("2d", value.real, value.imag) if isinstance(value, float | complex) else value


def is_numpy_scalar(value: Any) -> bool:
    """Whether `value` is an immutable NumPy scalar."""
    numpy: Any = sys.modules.get("numpy")
    mutable = numpy and (numpy.void, numpy.object_)
    return numpy is not None and isinstance(value, numpy.generic) and not isinstance(value, mutable)


class Identity:
    """Wraps an object and keeps it alive; equal to another wrapper of the same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Plain:
    """An object whose memory holds a dictionary of attributes and nothing else."""


def _holds_attributes_only(value: Any) -> bool:
    """Whether the attributes in ``vars(value)`` are its only contents, or it is a member of an enum."""
    layouts = [
        (kind.__basicsize__, kind.__itemsize__, kind.__dictoffset__, kind.__weakrefoffset__)
        for kind in (type(value), _Plain)
    ]
    return layouts[0] == layouts[1] or isinstance(value, Enum)


_IMMUTABLE_PARTS = {
    partial: ("func", "args", "keywords"),
    types.MethodType: ("__func__", "__self__"),
    **dict.fromkeys((classmethod, staticmethod), ("__func__",)),
    property: ("fget",),
    cached_property: ("func",),
}
"""By exact type: the attributes that make up an object, and that cannot be set."""


def contents(value: Any) -> tuple[Hashable, Mapping[Any, Any]] | None:
    """What is compared of `value`: properties, by ``==``, and parts, by attribute, index or key.

    None if some contents cannot be compared.
    """
    kind: type = type(value)
    if isinstance(value, nn.Module):
        # parameters and buffers separately, since hibana.cells.ranges distinguishes them
        tensors = _tensor_properties(value._parameters), _tensor_properties(value._buffers)
        return (value.training, torch_internals.has_hooks(value), *tensors), {**vars(value), **value._modules}
    if kind is types.ModuleType:
        return Identity(value), vars(value)
    if isinstance(value, type):
        return value.__mro__, vars(value)
    if kind in (Tensor, nn.Parameter) and not vars(value):
        return (Identity(value), value.shape, value.dtype, value.device, value.requires_grad), {}
    if kind in _IMMUTABLE_PARTS:
        return None, {name: getattr(value, name) for name in _IMMUTABLE_PARTS[kind]}
    if kind is types.FunctionType:
        names, cells = value.__code__.co_freevars, value.__closure__ or ()
        empty = types.CellType()
        closure = {n: c.cell_contents for n, c in zip(names, cells, strict=True) if c != empty}
        defaults = {"defaults": value.__defaults__, "by keyword": value.__kwdefaults__}
        return value.__code__, {**defaults, **closure, **vars(value)}
    if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return None, dict(enumerate(value))
    if kind in (set, frozenset):
        return None, dict(enumerate(sorted(value, key=repr)))
    if kind is dict:
        return (None, value.copy()) if all(type(key) in CONSTANT for key in value) else None
    if root(kind.__module__) == "torch" and hasattr(kind, "__getattr__"):
        return None  # such as `torch.backends.cuda.matmul`, whose attributes are states of torch
    return (None, vars(value).copy()) if _holds_attributes_only(value) else None


def snapshot(value: Any, names: Iterable[str] | None = None) -> Hashable:
    """Everything of `value` that is compared, with the ids of its parts: equal unless `value` changes.

    Whoever keeps a snapshot must keep the parts alive. If there are `names`, only these parts are compared,
    but a part with a new name is a change too.
    """
    described = contents(value)
    if described is None:
        return None
    properties, parts = described
    values = parts.values() if names is None else [parts.get(name, MISSING) for name in names]
    return type(value), properties, *parts, *map(id, values)


def _tensor_properties(tensors: Mapping[str, Tensor | None]) -> tuple[Hashable, ...]:
    """The names, shapes, dtypes, devices and ``requires_grad`` of `tensors`."""
    properties = [
        None if t is None else (t.shape, t.dtype, t.device, t.requires_grad) for t in tensors.values()
    ]
    return (*tensors, *properties)


def never_changes(value: Any) -> bool:
    """Whether the parts of `value` cannot be replaced: tuples, methods, and hibana's frozen dataclasses."""
    return isinstance(value, tuple) or type(value) in _IMMUTABLE_PARTS or _is_frozen(value)


def _is_frozen(value: Any) -> bool:
    """Whether `value` is a frozen dataclass of hibana with constants only, as most surrogates are."""
    kind: Any = type(value)
    parameters = getattr(kind, "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen and root(kind.__module__) == "hibana"
    return frozen and all(type(attribute) in PLAIN for attribute in vars(value).values())


def traced_kind(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a trace runs for `module`: ``traced_as`` of its class, or its class.

    Layers of hibana that choose a kernel by the values of their input compute the same as a plain layer of
    torch, and name that layer in ``traced_as``. Subclasses of these layers, and modules with an instance
    attribute ``forward``, are traced as they are.
    """
    kind: type[nn.Module] = type(module)
    return kind if "forward" in vars(module) else vars(kind).get("traced_as", kind)
