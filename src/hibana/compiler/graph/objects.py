"""Which values, functions, classes and packages do not change, so that a step may read them freely."""

import sys
import types
from collections import namedtuple
from collections.abc import Hashable
from enum import Enum
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

PLAIN = frozenset({float, int, bool, str, types.NoneType})
"""Types whose values are constants."""
CONSTANT = PLAIN | {
    *(complex, bytes, range, types.CodeType, types.EllipsisType, types.NotImplementedType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    type(vars(namedtuple("_Named", "field"))["field"]),
}
UNCHANGED_PACKAGES = {
    *("hibana", "numpy", "torch", "_collections_abc", "_functools", "_operator", "abc", "cmath"),
    *("collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math", "numbers"),
    *("operator", "reprlib", "types", "typing"),
}
"""Packages whose functions and classes do the same at each call."""
_READS_STATE = {
    *("are_deterministic_algorithms_enabled", "get_autocast_dtype", "get_default_device"),
    *("get_default_dtype", "get_float32_matmul_precision", "get_num_interop_threads", "get_num_threads"),
    *("get_rng_state", "initial_seed", "is_anomaly_enabled", "is_autocast_enabled", "is_grad_enabled"),
    *("is_inference_mode_enabled", "seed"),
    *("_get_extobj_dict", "getbufsize", "geterr", "geterrcall", "get_printoptions"),
    *("__import__", "breakpoint", "compile", "eval", "exec", "globals", "id", "input", "open"),
}
"""Functions of torch, NumPy and Python that do not."""
_OPERATIONS = {"OpOverload", "OpOverloadPacket", "ScriptFunction", "_ArrayFunctionDispatcher", "ufunc"}
"""Types of functions of torch and NumPy."""
_DESCRIPTORS = types.ClassMethodDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType


def root(name: object) -> str:
    """The package of the module called `name`."""
    return str(name).partition(".")[0]


def does_not_change(value: Any) -> bool:
    """Whether `value` is a function, a class or a module that does the same at each call."""
    kind: type = type(value)
    where: Any = None
    if isinstance(value, types.ModuleType):
        where = value.__name__
    elif isinstance(value, types.FunctionType):
        where = value.__globals__.get("__name__")
    elif isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        if isinstance(owner, types.ModuleType):
            where = owner.__name__
        elif owner is None or isinstance(owner, type):
            where = getattr(owner, "__module__", None) or value.__module__
    elif isinstance(value, type):
        where = value.__module__
    elif isinstance(value, _DESCRIPTORS):
        where = value.__objclass__.__module__
    elif kind.__name__ in _OPERATIONS:
        where = kind.__module__
    known = where == "builtins" or root(where) in UNCHANGED_PACKAGES
    return known and getattr(value, "__name__", "") not in _READS_STATE


def exact(value: Any) -> Any:
    """`value`, or for zeros and NaN their text: it distinguishes signs, and is equal for NaN."""
    return repr(value) if isinstance(value, float | complex) and (value == 0 or value != value) else value


def is_read_by_torch(kind: type) -> bool:
    """Whether torch's own code, which is not followed, reads the attributes of a module of `kind`."""
    return any(root(base.__module__) == "torch" and base is not nn.Module for base in kind.__mro__)


def is_scalar_of_numpy(value: Any) -> bool:
    """Whether `value` is a NumPy scalar, which is immutable."""
    numpy: Any = sys.modules.get("numpy")
    mutable = numpy and (numpy.void, numpy.object_)
    return numpy is not None and isinstance(value, numpy.generic) and not isinstance(value, mutable)


class _Plain:
    pass


def holds_attributes_only(value: Any) -> bool:
    """Whether `value` is a dictionary of attributes and nothing else, or a member of an enum."""
    layouts = [
        (kind.__basicsize__, kind.__itemsize__, kind.__dictoffset__, kind.__weakrefoffset__)
        for kind in (type(value), _Plain)
    ]
    return layouts[0] == layouts[1] or isinstance(value, Enum)


_PARTS = {
    partial: ("func", "args", "keywords"),
    types.MethodType: ("__func__", "__self__"),
    **dict.fromkeys((classmethod, staticmethod), ("__func__",)),
    property: ("fget",),
    cached_property: ("func",),
}
"""The attributes that make up objects of exactly these types, which never change."""


def parts_of(value: Any) -> dict[Hashable, Any] | None:
    """What `value` consists of, by attribute, index or key; None if it may hold more than can be compared."""
    kind: type = type(value)
    if kind in _PARTS:
        return {name: getattr(value, name) for name in _PARTS[kind]}
    if kind is types.FunctionType:
        names, cells = value.__code__.co_freevars, value.__closure__ or ()
        empty = types.CellType()
        enclosed = {n: c.cell_contents for n, c in zip(names, cells, strict=True) if c != empty}
        own = {"code": value.__code__, "defaults": value.__defaults__, "by keyword": value.__kwdefaults__}
        return {**own, **enclosed, **vars(value)}
    if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return dict(enumerate(value))
    if kind in (set, frozenset):
        return dict(enumerate(sorted(value, key=repr)))
    if kind is dict:
        return value.copy() if all(type(key) in CONSTANT for key in value) else None
    return vars(value).copy() if holds_attributes_only(value) else None


def never_changes(value: Any) -> bool:
    """Whether the parts of `value` stay: tuples, methods, and the surrogates of hibana."""
    return isinstance(value, tuple) or type(value) in _PARTS or is_frozen(value)


def is_frozen(value: Any) -> bool:
    """Whether `value` is a frozen dataclass of hibana's, with constants only, as most surrogates are."""
    kind: Any = type(value)
    rules = getattr(kind, "__dataclass_params__", None)
    frozen = rules is not None and rules.frozen and root(kind.__module__) == "hibana"
    return frozen and all(type(each) in PLAIN for each in vars(value).values())


def traced_kind(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a trace runs for `module`: its own, or its class's `traced_as`.

    A layer that looks at its input to choose a kernel computes what a plain layer of torch does; a trace
    needs the plain one. Subclasses, and modules with a ``forward`` of their own, are taken as they are.
    """
    kind: type[nn.Module] = type(module)
    return kind if "forward" in vars(module) else vars(kind).get("traced_as", kind)
