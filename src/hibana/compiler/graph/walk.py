"""Follows everything that a step can read, from its cell on; ``docs/how/loop.md`` lists what is followed.

Of an ``nn.Module``, a class and a Python module, the attributes count whose names occur in code that the step
can reach; of all other objects every attribute does.
"""

import builtins
import re
import sys
from collections import deque
from collections.abc import Hashable, Mapping
from enum import EnumType
from importlib.util import resolve_name
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from hibana.cells.base import INTERNAL
from hibana.compiler.graph import watch
from hibana.compiler.graph.code import names_in, names_of_methods, native_bases
from hibana.compiler.graph.kinds import (
    CONSTANT,
    DESCRIPTORS,
    READS_STATE,
    UNCHANGED_PACKAGES,
    Same,
    does_not_change,
    exact,
    is_array,
    is_code_of_package,
    is_operation,
    is_read_by_torch,
    is_scalar_of_numpy,
    root,
    traced_kind,
)
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.watch import CONTAINERS, MISSING, NUMBERS, PLAIN, Item, Look, Watch

NOT_HYPER = frozenset(vars(nn.Module())) | {INTERNAL}
"""Attributes of a module that no step computes with."""
MANY = 1000
"""Maximum elements of an array, whose values are compared at each call."""
MOST = 5000
"""Maximum objects that are followed from one cell."""
_READS_ANYTHING = {"__import__", "breakpoint", "compile", "eval", "exec", "globals", "id", "input", "open"}
"""Built-in functions that read more than they are given."""
_OF_A_FUNCTION = {"__annotations__", "__doc__"}
"""Attributes of a function that are in none of the dictionaries that are compared."""
_CALLED_BY_NAME = {"backward", "forward", "jvp", "keep", "restore", "setup_context", "vmap"}
"""Methods that torch and :mod:`hibana.cells.surrogate` call while a step runs."""
_NOT_IN_A_STEP = {
    *(
        "__annotate__",
        "__annotate_func__",
        "__copy__",
        "__deepcopy__",
        "__del__",
        "__dir__",
    ),
    *("__getstate__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__set_name__", "__setstate__"),
}
_OF_A_NEW_OBJECT = {"__init__", "__new__", "__post_init__"}


class _Names:
    """Attributes that are followed if their names occur in the code."""

    def __init__(self, index: int, path: str, values: Mapping[str, Any], of: Any) -> None:
        self.index, self.path, self.values, self.of = index, path, values, of
        self.read: dict[str, Any] = {}


class Walk:
    """Each object that a step can read, once, and what they are as a key."""

    def __init__(self) -> None:
        self.key: list[Hashable] = []
        self.alive: list[object] = []
        self._watched: list[Watch] = []
        self._items: list[Item] = []
        self._places: dict[int, int] = {}
        self._waiting: deque[tuple[Any, str]] = deque()
        self._attributes: list[_Names] = []
        self._names = set(_CALLED_BY_NAME)
        self._any_attribute = False
        """Whether the code may read attributes by computed names."""
        self._any_class = False
        """Whether the code may ask an object for its class."""
        self._called: set[type] = set()
        """Classes that the code may instantiate."""
        self._tensors: list[Tensor] = []
        self.unguarded = ""
        """A number that is not reached through attributes and items of the module, or of their classes."""

    def run(self, module: nn.Module) -> None:
        """Follows `module`.

        Raises:
            Unsupported: at the first object that can change unseen.
        """
        self._place(module, "self")
        while self._waiting:
            value, path = self._waiting.popleft()
            if len(self._places) > MOST:
                raise Unsupported(
                    f"the step may read {path} and more than {MOST:,} other objects, too many to follow"
                )
            self._visit(value, path, self._places[id(value)])
            if not self._waiting:
                self._follow_names()

    def look(self) -> Look:
        """The look at the module that :meth:`run` was given."""
        return watch.at_module(list(self._attributes[0].read))

    def is_plain(self) -> bool:
        """Whether what the module itself holds, and the step reads, changes only if an attribute is set."""
        return all(map(watch.is_fixed, self._attributes[0].read.values()))

    def watched(self) -> list[Watch]:
        """Snapshots, with :meth:`items`, of everything else that was followed."""
        found = list(self._watched)
        for names in self._attributes[1:]:
            if isinstance(names.of, nn.Module):
                look, of = watch.at_module(list(names.read)), names.of
            else:
                look, of = len, vars(names.of)
            found.append((look, of, look(of)))
        return found

    def items(self) -> list[Item]:
        """Global variables, and attributes of classes, functions and Python modules, that were followed."""
        others = [names for names in self._attributes if not isinstance(names.of, nn.Module)]
        read = [(vars(names.of).get, name, value) for names in others for name, value in names.read.items()]
        return [*self._items, *read]

    def uncopied(self) -> list[object]:
        """Loose tensors, and attributes of modules that are not read."""
        modules = [names for names in self._attributes if isinstance(names.of, nn.Module)]
        unread = [v for names in modules for name, v in names.values.items() if name not in names.read]
        return [*self._tensors, *unread]

    def _follow_names(self) -> None:
        for names in self._attributes:
            for name in sorted(names.values.keys() - names.read.keys()):
                value = names.values[name]
                if self._reads(names.of, name, value):
                    names.read[name] = value
                    path = f"{names.path}.{name}"
                    number = type(value) in (int, float) and isinstance(names.of, type)
                    self.key.append((names.index, name, self._refer(value, "self" if number else path)))

    def _reads(self, of: Any, name: str, value: Any) -> bool:
        """Whether the step may read the attribute `name` of a module, class, function or Python module."""
        if name in self._names:
            return True
        if isinstance(of, nn.Module):
            return self._any_attribute or type(value) in PLAIN or is_read_by_torch(type(of))
        if isinstance(of, ModuleType):
            known = {*sys.stdlib_module_names, *UNCHANGED_PACKAGES}
            return name == "__getattr__" or (self._any_attribute and root(of.__name__) not in known)
        if name in _OF_A_NEW_OBJECT:
            return self._any_class or of in self._called
        if name.startswith("__"):
            method = callable(value) or isinstance(value, classmethod | staticmethod)
            return method and name not in _NOT_IN_A_STEP
        return self._any_attribute and name != "_abc_impl"

    def _place(self, value: Any, path: str) -> int:
        """The number of an object in the order in which they were found."""
        if id(value) not in self._places:
            if self._places:  # the first is the module itself, which keeps what is found
                self.alive.append(value)
            self._places[id(value)] = len(self._places)
            self._waiting.append((value, path))
        return self._places[id(value)]

    def _refer(self, value: Any, path: str) -> Hashable:
        """The key's entry for `value`."""
        kind = type(value)
        if (kind in (int, float) and not path.startswith("self")) or is_scalar_of_numpy(value):
            self.unguarded = self.unguarded or path
        if kind in CONSTANT:
            return kind, exact(value)
        if isinstance(value, DESCRIPTORS) or is_operation(kind):
            return Same(value)
        if isinstance(value, BuiltinFunctionType):
            return self._function_in_c(value, path)
        if isinstance(value, type):
            if does_not_change(value):
                return Same(value)
            self._called.update(value.__mro__)
        elif isinstance(value, FunctionType) and does_not_change(value) and not value.__closure__:
            return Same(value)
        elif is_scalar_of_numpy(value):
            return kind, str(value.dtype), value.tobytes()
        return self._place(value, path)

    def _function_in_c(self, value: BuiltinFunctionType, path: str) -> Hashable:
        bound = value.__self__
        if bound is not None and not isinstance(bound, ModuleType | type):
            return value.__name__, self._refer(bound, f"{path}.__self__")
        where = getattr(bound, "__module__", value.__module__)
        if isinstance(bound, ModuleType):
            where = bound.__name__
        if where == "builtins":
            repeats = value.__name__ not in _READS_ANYTHING
        else:
            repeats = root(where) in UNCHANGED_PACKAGES and value.__name__ not in READS_STATE
        if not repeats:
            raise Unsupported(
                f"the step may call {where}.{value.__name__}, which can give another result each time"
            )
        return Same(value)

    def _visit(self, value: Any, path: str, index: int) -> None:
        if isinstance(value, nn.Module):
            self._module(value, path, index)
        elif isinstance(value, ModuleType):
            self._python_module(value, path, index)
        elif isinstance(value, FunctionType):
            self._function(value, path, index)
        elif isinstance(value, type):
            self._class(value, path, index)
        elif isinstance(value, Tensor):
            self._tensor(value, path, index)
        elif is_array(value):
            self._array(value, path, index)
        else:
            self._object(value, path, index)

    def _module(self, module: nn.Module, path: str, index: int) -> None:
        kind = traced_kind(module)  # another one than its own reads tensors alone
        own = vars(module).copy() if kind is type(module) else {}  # another thread may set an attribute
        hyper = {name: value for name, value in own.items() if name not in NOT_HYPER}
        self._attributes.append(_Names(index, path, hyper, module))
        if watch.hooked(module):
            raise Unsupported(f"hooks on {type(module).__name__} are to run at each step")
        # apart: AtLeast tells a parameter from a buffer
        tensors = watch.held(module._parameters), watch.held(module._buffers)
        inner = [(name, self._refer(part, f"{path}.{name}")) for name, part in module._modules.items()]
        self.key.append((index, self._kind(kind, path), module.training, *tensors, *inner))

    def _python_module(self, module: ModuleType, path: str, index: int) -> None:
        values = {n: v for n, v in vars(module).copy().items() if not is_code_of_package(module, v)}
        self.key.append((index, Same(module), self._class_of(module, path)))
        self._attributes.append(_Names(index, module.__name__, values, module))

    def _function(self, function: FunctionType, path: str, index: int) -> None:
        code, name = function.__code__, function.__qualname__
        enclosed: list[Hashable] = []
        self._watch(watch.at_function, function)
        for variable, value in zip(code.co_freevars, watch.enclosed(function), strict=True):
            if variable == "__class__":  # of `super()`, which makes no object of it
                enclosed.append(self._kind(value, path))
            elif value is not MISSING:
                enclosed.append(self._refer(value, f"{variable}, which {name} encloses,"))
        given = [
            self._refer(each, f"a default of {name}")
            for each in (function.__defaults__, function.__kwdefaults__)
        ]
        self.key.append((index, code, *given, *enclosed))
        if does_not_change(function):
            return
        self._attributes.append(_Names(index, name, vars(function), function))
        names, outer = names_in(code), function.__globals__
        variables = sorted({variable for variable, *_ in names.variables})
        self._names |= names.attributes
        if read := sorted(names.attributes & _OF_A_FUNCTION):
            raise Unsupported(f"the step may read {read[0]} in {name}, which can change unseen")
        self._any_attribute = self._any_attribute or names.any_attribute
        self._any_class = self._any_class or "type" in variables or "__class__" in names.attributes
        self._items += [(outer.get, variable, outer.get(variable, MISSING)) for variable in variables]
        for variable in variables:
            value = outer.get(variable, MISSING)
            if value is MISSING:
                value = vars(builtins).get(variable, MISSING)
                if not isinstance(value, BuiltinFunctionType | type):  # but what everyone has
                    self._items.append((vars(builtins).get, variable, value))
                value = None if value is MISSING else value
            if isinstance(value, ModuleType) and (variable,) not in names.variables:
                paths = sorted(path for first, *path in names.variables if first == variable)
                self.key += [(index, variable, *path, self._in_python_module(value, path)) for path in paths]
            else:
                self.key.append((index, variable, self._refer(value, f"the global variable {variable}")))
        for imported, level in sorted(names.imports):
            whole = resolve_name("." * level + imported, outer.get("__package__")) if level else imported
            parents = [whole[: dot.start()] for dot in re.finditer(r"\.|$", whole)]
            self._items += [(sys.modules.get, name, sys.modules.get(name, MISSING)) for name in parents]
            self.key.append((index, *(self._refer(sys.modules.get(parent), parent) for parent in parents)))

    def _in_python_module(self, module: ModuleType, path: list[str]) -> Hashable:
        """The key's entry for what the attributes in `path`, one after the other, lead to."""
        first, *rest = path
        value = vars(module).get(first, MISSING)
        if value is MISSING:  # its own __getattr__ knows
            return self._refer(module, module.__name__)
        if is_code_of_package(module, value):
            return None
        self._items.append((vars(module).get, first, value))
        if isinstance(value, ModuleType) and rest:
            return self._in_python_module(value, rest)
        return self._refer(value, f"{module.__name__}.{first}")

    def _class_of(self, value: Any, path: str) -> Hashable:
        return self._kind(type(value), path)

    def _kind(self, kind: type, path: str) -> Hashable:
        """The key's entry for a class whose methods the step may call on an existing object."""
        for base in kind.__mro__:
            if root(base.__module__) == "hibana":
                self._names |= names_of_methods(base)
        return Same(kind) if does_not_change(kind) else self._place(kind, path)

    def _class(self, kind: type, path: str, index: int) -> None:
        natives = [*native_bases(kind), *native_bases(type(kind))]
        if unknown := [base for base in natives if not does_not_change(base)]:
            self._refuse(path, unknown[0])
        bases = [self._kind(base, path) for base in (*kind.__mro__[1:], type(kind))]
        members: list[Any] = list(kind) if isinstance(kind, EnumType) else []
        self.key.append(
            (index, Same(kind), *bases, *(self._refer(one, f"{path}.{one.name}") for one in members))
        )
        self._attributes.append(_Names(index, kind.__qualname__, vars(kind), kind))

    def _tensor(self, tensor: Tensor, path: str, index: int) -> None:
        if type(tensor) not in (Tensor, nn.Parameter):
            self._refuse(path, type(tensor))
        self._tensors.append(tensor)
        about = self._watch(watch.at_tensor, tensor)
        inner = [(name, self._refer(value, f"{path}.{name}")) for name, value in vars(tensor).items()]
        self.key.append((index, Same(tensor), about[:4], *inner))

    def _array(self, array: Any, path: str, index: int) -> None:
        if array.dtype.hasobject or array.size > MANY:
            raise Unsupported(
                f"the step may read {path}, an array of {array.size:,} elements of {array.dtype}; only up to "
                f"{MANY:,} numbers are compared at each call: make it a tensor"
            )
        self.unguarded = self.unguarded or path
        self.key.append((index, self._watch(watch.at_array, array)))

    def _object(self, value: Any, path: str, index: int) -> None:
        kind: type = type(value)
        natives = native_bases(kind)
        if not all(base in CONTAINERS or base in NUMBERS for base in natives):
            self._refuse(path, kind)
        base = natives[0] if natives else object
        constant = exact(NUMBERS[base](value)) if base in NUMBERS else None
        parts = list(CONTAINERS[base](value)) if base in CONTAINERS else []
        if isinstance(value, set | frozenset):
            parts.sort(key=repr)
        inner = [self._refer(part, f"{path}[{i}]") for i, part in enumerate(parts)]
        own = [(name, self._refer(each, f"{path}.{name}")) for name, each in watch.attributes(value)]
        self.key.append((index, Same(base), constant, self._class_of(value, path), *inner, *own))
        if type(value) not in (tuple, frozenset, MethodType) and not watch.is_fixed(value):
            self._watch(watch.at_object(base), value)

    def _watch(self, look: Any, value: Any) -> Any:
        self._watched.append((look, value, found := look(value)))
        return found

    def _refuse(self, path: str, kind: type) -> None:
        where = f"{kind.__module__}.{kind.__qualname__}"
        raise Unsupported(f"the step may read {path}, of type {where}, which can change unseen")
