"""Follows what a step can read, from its cell on; ``docs/how/loop.md`` lists what is followed.

Of modules, classes and Python modules, the attributes count whose names occur in code that the step can
reach; of other objects every attribute does. Everything else is refused.
"""

import builtins
from collections import deque
from collections.abc import Hashable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from hibana.cells import Cell
from hibana.cells.base import CACHE_ATTRIBUTE, CellCache
from hibana.compiler.bounded_dict import BoundedDict
from hibana.compiler.graph import snapshots
from hibana.compiler.graph.names import names_in
from hibana.compiler.graph.objects import (
    CONSTANT,
    PLAIN,
    UNCHANGED_PACKAGES,
    does_not_change,
    exact,
    is_read_by_torch,
    is_scalar_of_numpy,
    never_changes,
    parts_of,
    root,
    traced_kind,
)
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.snapshots import MISSING, Item, Look, Watch, is_unchanged

NOT_HYPER = frozenset(vars(nn.Module())) | {CACHE_ATTRIBUTE}
"""Attributes of a module that no step computes with."""
SERVED = 128
"""Maximum programs and calls per cell, which differ in backend, shape, dtype or threads."""
MOST = 5000
"""Maximum objects that are followed from one cell."""
_CALLED_BY_NAME = {"__getattr__", "backward", "forward", "jvp", "keep", "restore", "setup_context", "vmap"}
"""Methods that Python, torch and :mod:`hibana.cells.surrogate` call while a step runs."""
_NOT_IN_A_STEP = {
    *("__annotate__", "__annotate_func__", "__copy__", "__deepcopy__", "__del__", "__dir__"),
    *("__getstate__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__set_name__", "__setstate__"),
}
_CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}


class Path(NamedTuple):
    """How a step reaches an object: as text, and, if possible, as attributes and items from the cell on."""

    text: str
    steps: tuple[tuple[str, Any], ...] | None = None

    def to(self, how: str, name: Any) -> "Path":
        """The path of an ``"attribute"`` or an ``"item"``."""
        text = f"{self.text}.{name}" if how == "attribute" else f"{self.text}[{name!r}]"
        return Path(text, None if self.steps is None else (*self.steps, (how, name)))


class _Names:
    """Attributes that are followed if their names occur in the code."""

    def __init__(self, index: int, path: Path, values: Mapping[str, Any], of: Any) -> None:
        self.index, self.path, self.values, self.of = index, path, values, of
        self.read: dict[str, Any] = {}


class Same:
    """An object by identity, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Dependencies:
    """All that a step of `module` can read: each object once."""

    def __init__(self, module: nn.Module) -> None:
        self._entries: list[Hashable] = []
        self.refusal = ""
        """Why no program can serve the module: the first object that can change unseen; or ``""``."""
        self.numbers: list[tuple[Path, float]] = []
        """Each number that the step can read."""
        self.watched: list[Watch] = []
        """With :attr:`items`, snapshots of everything but the module itself."""
        self.items: list[Item] = []
        """Global variables, and attributes of classes, functions and Python modules, that were followed."""
        self.cache: dict[Hashable, Any] = BoundedDict(SERVED)
        """Programs and calls of the module while it was like that, found without the key."""
        self._places: dict[int, int] = {}
        self._alive: list[object] = []
        """Objects that are kept alive, since snapshots hold identities."""
        self._waiting: deque[tuple[Any, Path]] = deque()
        self._attributes: list[_Names] = []
        self._names = set(_CALLED_BY_NAME)
        self._computes_names = False
        """Whether the code may read attributes by computed names."""
        self._any_class = False
        """Whether the code may ask an object for its class."""
        self._instantiated: set[type] = set()
        """Classes that the code may instantiate."""
        self._tensors: list[Tensor] = []
        try:
            self._run(module)
        except Unsupported as reason:
            self.refusal = str(reason)
        self.key = tuple(self._entries)
        """Equal for modules whose steps read the same, but for the values of tensors."""
        self.look = snapshots.at_module(list(self._attributes[0].read))
        """The look at the module itself, and its snapshot."""
        self.snapshot = self.look(module)
        self._watch_attributes()

    def _run(self, module: nn.Module) -> None:
        self._place(module, Path("self", ()))
        while self._waiting:
            value, path = self._waiting.popleft()
            if len(self._places) > MOST:
                raise Unsupported(
                    f"the step may read {path.text} and more than {MOST:,} other objects, too many to follow"
                )
            self._visit(value, path, self._places[id(value)])
            if not self._waiting:
                self._follow_names()

    def uncopied(self) -> list[object]:
        """Objects that a copy of the module must share with it: loose tensors, and unread attributes."""
        modules = [names for names in self._attributes if isinstance(names.of, nn.Module)]
        unread = [v for names in modules for name, v in names.values.items() if name not in names.read]
        return [*self._tensors, *unread]

    def _watch_attributes(self) -> None:
        for names in self._attributes[1:]:
            of = names.of
            if isinstance(of, nn.Module):
                self._watch(snapshots.at_module(list(names.read)), of)
                continue
            self.items += [(vars(of).get, name, value) for name, value in names.read.items()]
            if isinstance(of, type) or root(of.__name__) not in UNCHANGED_PACKAGES:
                self._watch(snapshots.at_names, of)

    def _follow_names(self) -> None:
        for names in self._attributes:
            for name in sorted(names.values.keys() - names.read.keys()):
                value = names.values[name]
                if self._reads(names.of, name, value):
                    names.read[name] = value
                    self._entries.append(
                        (names.index, name, self._refer(value, names.path.to("attribute", name)))
                    )

    def _reads(self, of: Any, name: str, value: Any) -> bool:
        """Whether the step may read the attribute `name` of a module, class or Python module."""
        if name in self._names:
            return True
        if isinstance(of, nn.Module):
            return self._computes_names or type(value) in PLAIN or is_read_by_torch(type(of))
        if isinstance(of, ModuleType):
            return self._computes_names and root(of.__name__) not in UNCHANGED_PACKAGES
        if name in _CONSTRUCTORS:
            return self._any_class or of in self._instantiated
        if name.startswith("__"):
            method = callable(value) or isinstance(value, classmethod | staticmethod)
            return method and name not in _NOT_IN_A_STEP
        return self._computes_names and name != "_abc_impl"

    def _place(self, value: Any, path: Path) -> int:
        """The number of an object in the order in which they were reached."""
        if id(value) not in self._places:
            if self._places:  # the first is the module itself, which holds this walk's result
                self._alive.append(value)
            self._places[id(value)] = len(self._places)
            self._waiting.append((value, path))
        return self._places[id(value)]

    def _refer(self, value: Any, path: Path) -> Hashable:
        """The key's entry for `value`."""
        kind = type(value)
        if kind in (int, float):
            self.numbers.append((path, value))
        if kind in CONSTANT:
            return kind, exact(value)
        if is_scalar_of_numpy(value):
            self.numbers.append((Path(path.text), value))
            return kind, str(value.dtype), value.tobytes()
        if (
            does_not_change(value)
            and not isinstance(value, ModuleType)
            and not getattr(value, "__closure__", None)
        ):
            return Same(value)
        if isinstance(value, BuiltinFunctionType):
            name = f"{value.__module__}.{value.__name__}" if value.__module__ else value.__qualname__
            raise Unsupported(f"the step may call {name}, which can give another result each time")
        if isinstance(value, type):
            self._instantiated.update(value.__mro__)
        return self._place(value, path)

    def _visit(self, value: Any, path: Path, index: int) -> None:
        if isinstance(value, nn.Module):
            self._module(value, path, index)
        elif type(value) is ModuleType or (isinstance(value, ModuleType) and does_not_change(value)):
            attributes = {n: v for n, v in vars(value).copy().items() if not does_not_change(v)}
            self._entries.append((index, Same(value)))
            self._attributes.append(_Names(index, Path(value.__name__), attributes, value))
        elif isinstance(value, type):
            self._class(value, path, index)
        elif type(value) in (Tensor, nn.Parameter) and not vars(value):
            self._tensors.append(value)
            self._watch(snapshots.at_tensor, value)
            self._entries.append((index, Same(value), snapshots.at_tensor(value)))
        else:
            self._parts(value, path, index)

    def _module(self, module: nn.Module, path: Path, index: int) -> None:
        kind = traced_kind(module)  # another one than its own reads tensors alone
        own = vars(module).copy() if kind is type(module) else {}  # another thread may set an attribute
        hyper = {name: value for name, value in own.items() if name not in NOT_HYPER}
        self._attributes.append(_Names(index, path, hyper, module))
        if snapshots.has_hooks(module):
            raise Unsupported(f"hooks on {type(module).__name__} are to run at each step")
        # apart: AtLeast tells a parameter from a buffer
        tensors = (
            snapshots.tensor_properties(module._parameters),
            snapshots.tensor_properties(module._buffers),
        )
        inner = [
            (name, self._refer(part, path.to("attribute", name))) for name, part in module._modules.items()
        ]
        self._entries.append((index, self._kind(kind, path), module.training, *tensors, *inner))

    def _parts(self, value: Any, path: Path, index: int) -> None:
        kind, parts = type(value), parts_of(value)
        if parts is None:
            self._refuse(path, kind)
        if isinstance(value, FunctionType):
            path = Path(value.__qualname__)
            if not does_not_change(value):
                self._code(value, index)
        how = "item" if isinstance(value, list | tuple | dict) else "attribute"
        entries: list[Hashable] = []
        for label, part in parts.items():
            place = path.to(how, label)
            # `__class__` is that of `super()`, which makes no object of it
            entry = self._kind(part, place) if label == "__class__" else self._refer(part, place)
            entries.append((exact(label), entry))
        self._entries.append((index, self._kind(kind, path), *entries))
        if not never_changes(value):
            self._watch(snapshots.at_parts, value)

    def _code(self, function: FunctionType, index: int) -> None:
        """What the code of `function` reads by name."""
        names, outer = names_in(function.__code__), function.__globals__
        if names.unseen:
            where = f"{min(names.unseen)} in {function.__qualname__}"
            raise Unsupported(f"the step may read {where}, which can change unseen")
        self._names |= names.attributes
        self._computes_names = self._computes_names or names.computes_names
        self._any_class = self._any_class or "type" in names.variables or "__class__" in names.attributes
        for variable in sorted(names.variables):
            value = outer.get(variable, MISSING)
            self.items.append((outer.get, variable, value))
            if value is MISSING:
                value = vars(builtins).get(variable, MISSING)
                self.items.append((vars(builtins).get, variable, value))
            if value is not MISSING:
                path = Path(f"the global variable {variable}")
                self._entries.append((index, variable, self._refer(value, path)))

    def _kind(self, kind: type, path: Path) -> Hashable:
        """The key's entry for a class whose methods the step may call on an existing object at `path`."""
        for base in kind.__mro__:
            if root(base.__module__) == "hibana":
                attributes = [value for name, value in vars(base).items() if name not in _CONSTRUCTORS]
                methods = [getattr(v, "fget", getattr(v, "__func__", v)) for v in attributes]
                codes = [method.__code__ for method in methods if isinstance(method, FunctionType)]
                self._names.update(*(names_in(code).attributes for code in codes))
        return Same(kind) if does_not_change(kind) else self._place(kind, path)

    def _class(self, kind: type, path: Path, index: int) -> None:
        bases = [self._kind(base, path) for base in (*kind.__mro__[1:], type(kind))]
        self._entries.append((index, Same(kind), *bases))
        attributes = {n: v for n, v in vars(kind).items() if n not in ("__dict__", "__weakref__")}
        self._attributes.append(_Names(index, path, attributes, kind))

    def _watch(self, look: Look, value: Any) -> None:
        self.watched.append((look, value, look(value)))

    def _refuse(self, path: Path, kind: type) -> NoReturn:
        where = f"{kind.__module__}.{kind.__qualname__}"
        hint = ": make it a tensor" if where == "numpy.ndarray" else ""
        raise Unsupported(f"the step may read {path.text}, of type {where}, which can change unseen{hint}")


def dependencies_of(cell: Cell) -> Dependencies:
    """All that the step of `cell` can read, cached until any of it changes.

    Raises:
        Unsupported: if it can read what can change unseen, or has hooks.
    """
    internal: CellCache = getattr(cell, CACHE_ATTRIBUTE)
    last: Dependencies | None = internal.dependencies
    if last is None or last.look(cell) != last.snapshot or not is_unchanged(last.items, last.watched):
        last = internal.dependencies = Dependencies(cell)
    if last.refusal:
        raise Unsupported(last.refusal)
    return last
