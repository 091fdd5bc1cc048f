"""The dependencies of a cell: all Python objects that its step can read, and whether any of them has changed.

Dependencies are collected without running the step. Attributes of modules, classes and Python modules are
dependencies if their names occur in code that the step can reach; all parts of other objects are. A step that
can read an object whose changes cannot be detected has no valid dependencies: it runs in the reference loop.
``docs/how/loop.md`` lists which objects are accepted.
"""

import builtins
from abc import get_cache_token
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.cells.base import CACHE_ATTRIBUTE, CellCache
from hibana.compiler.graph.names import names_in
from hibana.compiler.graph.objects import (
    CONSTANT,
    MISSING,
    PLAIN,
    Identity,
    contents,
    does_not_change,
    exact,
    is_numpy_scalar,
    never_changes,
    reads_state,
    root,
    snapshot,
    traced_kind,
)
from hibana.compiler.graph.ops import Unsupported
from hibana.runtime import torch_internals

Result = TypeVar("Result")
CELL_PROGRAMS = 128
"""Maximum programs, runs and other results per cell, which differ in backend, shape, dtype or threads."""
_UNREAD = frozenset(vars(nn.Module())) | {CACHE_ATTRIBUTE}
"""Attributes of a module that no step computes with."""
_CALLED_IMPLICITLY = {"__getattr__", "backward", "forward", "jvp", "setup_context", "vmap"}
"""Methods that Python, torch and :mod:`hibana.cells.surrogate` call while a step runs."""
_NOT_CALLED = {
    *("__annotate__", "__annotate_func__", "__copy__", "__deepcopy__", "__del__", "__dir__"),
    *("__getstate__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__set_name__", "__setstate__"),
}
"""Special methods that nothing calls while a step runs."""
_CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}


@dataclass
class _Namespace:
    """A module, class or Python module, whose attributes are dependencies if code names them."""

    index: int
    path: str
    owner: Any
    attributes: Mapping[str, Any]
    read: dict[str, Any] = field(default_factory=dict)
    """The attributes that are dependencies."""


class Dependencies:
    """All objects that the step of `module` can read. Each object has an index: the order of collection."""

    def __init__(self, module: nn.Module) -> None:
        self._entries: list[Hashable] = []
        """The parts of :attr:`key`."""
        self.refusal = ""
        """Names the first object whose changes cannot be detected; ``""`` if there is no such object."""
        self.numbers: list[tuple[str, float]] = []
        """Path and value of each number, such as ``("self.surrogate.alpha", 2.0)``."""
        self.watched: list[tuple[Any, list[str] | None, Hashable]] = []
        """All objects but the module itself that may change, with the arguments and results of
        :func:`hibana.compiler.graph.objects.snapshot`."""
        self.variables: list[tuple[Mapping[str, Any], str, Any]] = []
        """Global variables and attributes of modules: their dictionary, name and value."""
        self._state: dict[Callable[[], Hashable], Hashable] = {
            torch.get_default_dtype: torch.get_default_dtype()
        }
        """States of the process that determine what the step does, as functions and their results."""
        self.cache: dict[Hashable, Any] = {}
        """Programs and calls of the module, valid while its dependencies are unchanged; for its callers."""
        self._indices: dict[int, int] = {}
        """The index of each object, by its id."""
        self._alive: list[object] = []
        """The objects, since their ids are valid only while they exist."""
        self._queue: deque[tuple[Any, str]] = deque()
        """Objects to visit, and their paths."""
        self._namespaces: list[_Namespace] = []
        self._names = set(_CALLED_IMPLICITLY)
        """Names of attributes in the code of the step."""
        self._computes_names = False
        """Whether the code may read attributes by names that do not occur in it."""
        self._instantiated: set[type] = set()
        """Classes that the code may instantiate."""
        self._tensors: list[Tensor] = []
        """Tensors that are neither parameters nor buffers."""
        try:
            self._collect(module)
        except Unsupported as error:
            self.refusal = str(error)
        self.key = *self._state.values(), *self._entries
        """Equal for modules whose steps read the same, apart from the values of tensors."""
        self._names_of_module = list(self._namespaces[0].read)
        self._snapshot_of_module = snapshot(module, self._names_of_module)

    def is_valid_for(self, module: nn.Module) -> bool:
        """Whether `module`, whose dependencies these are, and all objects that its step reads are unchanged.

        `module` may be a copy with the same attributes.
        """
        return snapshot(module, self._names_of_module) == self._snapshot_of_module and self.is_unchanged()

    def is_unchanged(self) -> bool:
        """Whether all objects but the module itself are unchanged."""
        for read, value in self._state.items():
            if read() != value:
                return False
        for variables, name, value in self.variables:
            if variables.get(name, MISSING) is not value:
                return False
        for value, names, before in self.watched:  # noqa: SIM110 - a generator would take twice as long
            if snapshot(value, names) != before:
                return False
        return True

    def shared_with_copy(self) -> list[object]:
        """Objects that a copy of the module must share with it: other tensors, and unread attributes."""
        modules = [space for space in self._namespaces if isinstance(space.owner, nn.Module)]
        unread = [v for space in modules for name, v in space.attributes.items() if name not in space.read]
        return [*self._tensors, *unread]

    def _collect(self, module: nn.Module) -> None:
        """Visits all objects that the step of `module` can read, until no new ones are found."""
        self._index(module, "self")
        while self._queue:
            value, path = self._queue.popleft()
            self._visit(value, path, self._indices[id(value)])
            if not self._queue:
                self._add_read_attributes()
        for space in self._namespaces[1:]:
            if isinstance(space.owner, ModuleType) and does_not_change(space.owner):
                self.variables += [(vars(space.owner), name, value) for name, value in space.read.items()]
            else:
                self._watch(space.owner, list(space.read))

    def _add_read_attributes(self) -> None:
        """Adds attributes of namespaces whose names occur in the code that has been visited."""
        for space in self._namespaces:
            for name in sorted(space.attributes.keys() - space.read.keys()):
                value = space.attributes[name]
                if self._reads(space.owner, name, value):
                    space.read[name] = value
                    self._entries.append((space.index, name, self._entry(value, f"{space.path}.{name}")))

    def _reads(self, owner: Any, name: str, value: Any) -> bool:
        """Whether the step may read the attribute `name` of a module, class or Python module."""
        if name in self._names:
            return True
        if isinstance(owner, nn.Module):
            if self._computes_names or type(value) in PLAIN or name in owner._modules:
                return True
            # code of torch, which is not analyzed, reads the attributes of torch's own modules
            bases = set(type(owner).__mro__) - {nn.Module}
            return any(root(base.__module__) == "torch" for base in bases)
        if isinstance(owner, ModuleType):
            return self._computes_names and not does_not_change(owner)
        if name in _CONSTRUCTORS:
            return self._computes_names or owner in self._instantiated
        if name.startswith("__"):
            is_method = callable(value) or isinstance(value, classmethod | staticmethod)
            return is_method and name not in _NOT_CALLED
        return self._computes_names and name != "_abc_impl"

    def _index(self, value: Any, path: str) -> int:
        """The index of `value`, which is queued if it is new."""
        if id(value) not in self._indices:
            if self._indices:  # the first object is the module, whose cache refers to these dependencies
                self._alive.append(value)
            self._indices[id(value)] = len(self._indices)
            self._queue.append((value, path))
        return self._indices[id(value)]

    def _entry(self, value: Any, path: str) -> Hashable:
        """The entry of the key for `value`: the value of a constant, the index of any other object."""
        kind = type(value)
        if kind in (int, float):
            self.numbers.append((path, value))
        if kind in CONSTANT:
            return kind, exact(value)
        if is_numpy_scalar(value):
            self.numbers.append((f"the NumPy scalar {path}", value))
            return kind, str(value.dtype), value.tobytes()
        if value is isinstance or value is issubclass:
            self._state[get_cache_token] = get_cache_token()  # `ABC.register` changes their results
        is_constant = does_not_change(value) and not isinstance(value, ModuleType)
        if is_constant and not getattr(value, "__closure__", None):
            return Identity(value)
        if isinstance(value, BuiltinFunctionType) or (isinstance(value, FunctionType) and reads_state(value)):
            name = f"{value.__module__}.{value.__name__}" if value.__module__ else value.__qualname__
            raise Unsupported(f"the step may call {name}, which can give another result each time")
        if isinstance(value, type):
            self._instantiated.update(value.__mro__)
        return self._index(value, path)

    def _visit(self, value: Any, path: str, index: int) -> None:
        """Adds the contents of `value`; raises Unsupported if they cannot be compared, or for hooks."""
        kind = traced_kind(value) if isinstance(value, nn.Module) else type(value)
        described = contents(value)
        if described is None:
            name = f"{kind.__module__}.{kind.__qualname__}"
            hint = ": make it a tensor" if name == "numpy.ndarray" else ""
            raise Unsupported(f"the step may read {path}, of type {name}, which can change unseen{hint}")
        properties, parts = described
        classes = (kind, *value.__mro__[1:]) if isinstance(value, type) else (kind,)
        self._entries.append((index, properties, *(self._class_entry(each, path) for each in classes)))
        if isinstance(value, nn.Module | ModuleType | type):
            path = value.__name__ if isinstance(value, ModuleType) else path
            self._namespaces.append(_Namespace(index, path, value, _attributes(value, kind, dict(parts))))
            if isinstance(value, nn.Module) and torch_internals.has_hooks(value):
                raise Unsupported(f"hooks on {type(value).__name__} are to run at each step")
            return
        if isinstance(value, FunctionType):
            path = value.__qualname__
            if not does_not_change(value):
                self._visit_code(value, index)
        elif isinstance(value, Tensor):
            self._tensors.append(value)
        for label, part in parts.items():
            is_item = isinstance(value, list | tuple | dict)
            part_path = f"{path}[{label!r}]" if is_item else f"{path}.{label}"
            # `__class__` in a closure is the class of `super()`, which does not instantiate it
            visit = self._class_entry if label == "__class__" else self._entry
            self._entries.append((index, exact(label), visit(part, part_path)))
        if not never_changes(value):
            self._watch(value)

    def _visit_code(self, function: FunctionType, index: int) -> None:
        """Adds the names of attributes, and the global variables, in the code of `function`."""
        names = names_in(function.__code__)
        if names.untracked:
            name = f"{min(names.untracked)} in {function.__qualname__}"
            raise Unsupported(f"the step may read {name}, which can change unseen")
        self._names |= names.attributes
        self._computes_names |= names.computes_names
        for name, chains in groupby(sorted(names.variables), itemgetter(0)):
            for variables in (function.__globals__, vars(builtins)):
                value = variables.get(name, MISSING)
                self.variables.append((variables, name, value))
                if value is not MISSING:
                    for _, *attributes in chains:
                        part, path = self._attribute(value, attributes, f"the global variable {name}")
                        self._entries.append((index, name, *attributes, self._entry(part, path)))
                    break

    def _attribute(self, value: Any, attributes: list[str], path: str) -> tuple[Any, str]:
        """The object to which `attributes` lead from `value` through Python modules, and its path.

        Attributes of other objects are not followed. Attributes that a module computes are followed if they
        are functions, classes or modules that do not change, such as the operations of ``torch.ops``.
        """
        for name in attributes:
            is_stored = type(value) is ModuleType and name in vars(value)
            is_package = isinstance(value, ModuleType) and does_not_change(value)
            part = vars(value)[name] if is_stored else getattr(value, name, None) if is_package else None
            if not does_not_change(part):
                if not is_stored:
                    break
                self.variables.append((vars(value), name, part))
            path = f"{value.__name__}.{name}"
            value = part
        return value, path

    def _class_entry(self, kind: type, path: str) -> Hashable:
        """The entry of the key for the class of an object at `path`, whose methods the step may call."""
        for base in kind.__mro__:
            if root(base.__module__) == "hibana":
                attributes = [value for name, value in vars(base).items() if name not in _CONSTRUCTORS]
                methods = [getattr(v, "fget", getattr(v, "__func__", v)) for v in attributes]
                codes = [method.__code__ for method in methods if isinstance(method, FunctionType)]
                self._names.update(*(names_in(code).attributes for code in codes))
        return Identity(kind) if does_not_change(kind) else self._index(kind, path)

    def _watch(self, value: Any, names: list[str] | None = None) -> None:
        """Adds the current snapshot of `value`, to detect later changes."""
        self.watched.append((value, names, snapshot(value, names)))


def _attributes(owner: Any, kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """The attributes among the `parts` of a module, class or Python module that a step may read.

    `kind` is the class whose ``forward`` a trace runs for a module.
    """
    if isinstance(owner, ModuleType):
        return {n: v for n, v in parts.items() if isinstance(v, ModuleType) or not does_not_change(v)}
    if isinstance(owner, type):
        return {name: value for name, value in parts.items() if name not in ("__dict__", "__weakref__")}
    # A module that is traced as another class reads tensors, modules, and the attributes in `reads` of it.
    reads = parts if kind is type(owner) else (*getattr(kind, "reads", ()), *owner._modules)
    return {name: value for name, value in parts.items() if name in reads and name not in _UNREAD}


def dependencies_of(cell: Cell) -> Dependencies:
    """The dependencies of `cell`, collected again if any of them has changed.

    Raises Unsupported if the step can read an object whose changes cannot be detected, or has hooks.
    """
    cache: CellCache = getattr(cell, CACHE_ATTRIBUTE)
    last: Dependencies | None = cache.dependencies
    if last is None or not last.is_valid_for(cell):
        last = cache.dependencies = Dependencies(cell)
    if last.refusal:
        raise Unsupported(last.refusal)
    return last


def remembered(cell: Cell, key: Hashable, compute: Callable[[], Result]) -> Result:
    """``compute()``, remembered under `key` until an object that the step of `cell` can read changes."""
    try:
        cache: dict[Hashable, Any] = dependencies_of(cell).cache
    except Unsupported:
        return compute()  # the cell can change unseen
    result: Result | None = cache.get(key)
    if result is None:
        result = compute()
        store(cache, CELL_PROGRAMS, key, result)
    return result


def store(cache: dict[Hashable, Any], size: int, key: Hashable, entry: Any) -> None:
    """Stores `entry` in a `cache` of at most `size` entries, which is emptied first if it is full.

    Programs that are in use stay alive. Another thread may use the cache at the same time.
    """
    if len(cache) >= size:
        cache.clear()
    cache[key] = entry
