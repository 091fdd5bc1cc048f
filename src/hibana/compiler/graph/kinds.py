"""Which values, types, functions and packages are constant, so that a step may read them freely."""

import sys
import types
from collections import namedtuple
from decimal import Decimal
from typing import Any

import torch
from torch import nn

from hibana.compiler.graph.watch import PLAIN

CONSTANT = PLAIN | {
    *(complex, bytes, range, types.EllipsisType, types.NotImplementedType, types.CodeType, Decimal),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}
DESCRIPTORS = (
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType),
    type(vars(namedtuple("_Named", "field"))["field"]),
)
UNCHANGED_PACKAGES = {
    *(
        "hibana",
        "numpy",
        "torch",
        "_collections",
        "_collections_abc",
        "_functools",
        "_operator",
        "abc",
        "cmath",
    ),
    *("collections", "contextlib", "dataclasses", "enum", "fractions", "functools", "itertools", "math"),
    *("numbers", "operator", "reprlib", "types", "typing"),
}
"""Packages whose functions and classes do the same at each call."""
READS_STATE = {
    *("are_deterministic_algorithms_enabled", "get_autocast_dtype", "get_default_device"),
    *("get_default_dtype", "get_float32_matmul_precision", "get_num_interop_threads", "get_num_threads"),
    *("get_rng_state", "initial_seed", "is_anomaly_enabled", "is_autocast_enabled", "is_grad_enabled"),
    *("is_inference_mode_enabled", "seed"),
    *("_get_extobj_dict", "getbufsize", "geterr", "geterrcall", "get_printoptions"),
}
"""Functions of torch and NumPy that do not."""


class Same:
    """An object by identity, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def exact(value: Any) -> Any:
    """`value`, or for zeros and NaN their text: it distinguishes signs, and is equal for NaN."""
    return repr(value) if isinstance(value, float | complex) and (value == 0 or value != value) else value


def root(name: object) -> str:
    """The package of the module called `name`."""
    return str(name).partition(".")[0]


def does_not_change(value: Any) -> bool:
    """Whether `value`, a function or a class, does the same at each call."""
    where = value.__module__ if isinstance(value, type) else value.__globals__.get("__name__")
    if isinstance(value, types.FunctionType) and value.__name__ in READS_STATE:
        return False
    return root(where) in UNCHANGED_PACKAGES or (where == "builtins" and isinstance(value, type))


def is_code_of_package(module: types.ModuleType, value: Any) -> bool:
    """Whether `value`, of `module`, is code that does the same at each call."""
    if getattr(value, "__name__", "") in READS_STATE or root(module.__name__) not in UNCHANGED_PACKAGES:
        return False
    kinds = types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type
    return isinstance(value, kinds) or is_operation(type(value))


def is_read_by_torch(kind: type) -> bool:
    """Whether torch's own code, which is not followed, reads the attributes of a module of `kind`."""
    return any(root(base.__module__) == "torch" and base is not nn.Module for base in kind.__mro__)


def is_operation(kind: type) -> bool:
    """Whether objects of `kind` are functions of NumPy or torch, which have types of their own."""
    functions = "ufunc", "_ArrayFunctionDispatcher", "ScriptFunction"
    return kind.__module__ == "torch._ops" or (
        kind.__name__ in functions and root(kind.__module__) in ("numpy", "torch")
    )


def is_array(value: Any) -> bool:
    """Whether `value` is a NumPy array, not of a subclass."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def is_scalar_of_numpy(value: Any) -> bool:
    """Whether `value` is a NumPy scalar, which is immutable."""
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and isinstance(value, numpy.generic)
        and not isinstance(value, numpy.void | numpy.object_)
    )


def traced_kind(module: nn.Module) -> type[nn.Module]:
    """The class whose ``forward`` a trace runs for `module`: its own, or its class's `traced_as`.

    A layer that looks at its input to choose a kernel computes what a plain layer of torch does; a trace
    needs the plain one. Subclasses, and modules with a ``forward`` of their own, are taken as they are.
    """
    kind: type[nn.Module] = type(module)
    return kind if "forward" in vars(module) else vars(kind).get("traced_as", kind)
