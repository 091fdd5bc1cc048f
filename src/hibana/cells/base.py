"""The base classes of neurons: one step as a module, and the checks of its states."""

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hibana.cells.peer_aliases import unknown_argument_error
from hibana.cells.ranges import AtLeast

CACHE_ATTRIBUTE = "_hibana"
"""The attribute of a cell that is reserved for hibana."""


class CellCache:
    """The compiler's cache of one cell, its attribute ``_hibana``; copies of the cell do not share it."""

    __slots__ = ("dependencies", "states")

    def __init__(self, states: tuple[str, ...]) -> None:
        self.states = states
        """The result of :meth:`Cell.state_names`."""
        self.dependencies: Any = None
        """Everything that the step can read, with its programs; None after an attribute changed."""


class Cell(nn.Module):
    """One step of a neuron: ``forward(input_, *state) -> state``, the output state last.

    Hyperparameters are attributes: floats, tensors that broadcast against one step of input, or
    ``nn.Parameter``s. A tensor that is assigned becomes a buffer, so it moves with the module.
    """

    emits_spikes: bool | None = None
    """Whether the output is only zeros and ones; None: see :func:`hibana.compiler.emits_spikes`."""
    _hibana: CellCache

    def __init__(self) -> None:
        super().__init__()
        self._create_cache()

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restores a pickled or copied cell, with an empty cache."""
        super().__setstate__(state)  # type: ignore[no-untyped-call] # untyped in torch
        self._create_cache()

    def __getstate__(self) -> dict[str, object]:
        """The attributes to copy or pickle: all but the cache."""
        return {name: value for name, value in self.__dict__.copy().items() if name != CACHE_ATTRIBUTE}

    def _create_cache(self, states: tuple[str, ...] | None = None) -> None:
        """Sets an empty cache; `states` are the names of the states, read from ``forward`` if None."""
        self.__dict__[CACHE_ATTRIBUTE] = CellCache(self.state_names() if states is None else states)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, a tensor as a buffer; compiled programs that depend on it are dropped."""
        cache = self.__dict__.get(CACHE_ATTRIBUTE)
        if cache is not None and self.__dict__.get(name, cache) is not value:  # the same object is no change
            cache.dependencies = None
        if isinstance(range_ := getattr(type(self), name, None), AtLeast):
            self.__dict__.get("_parameters", {}).pop(range_.parameter_name, None)
        elif name == CACHE_ATTRIBUTE:
            raise AttributeError(f"{name} is reserved for hibana; choose another name for the attribute")
        is_buffer = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        buffers = self.__dict__.get("_buffers", {})
        if is_buffer and name not in buffers and name not in self.__dict__.get("_parameters", {}):
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
            return
        if name in buffers and not isinstance(value, Tensor):
            del buffers[name]
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Deletes an attribute; compiled programs that depend on it are dropped."""
        cache = self.__dict__.get(CACHE_ATTRIBUTE)
        if cache is not None:
            cache.dependencies = None
        super().__delattr__(name)

    @abstractmethod
    def forward(self, input_: Tensor, /, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state, from one step of input and the previous state; all tensors have one shape."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(input_, *state) -> state")

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The names of the states: the parameters of ``forward`` after the input, without ``_previous``.

        The states of :class:`hibana.IFCell` are ``("v", "s")``.

        Raises:
            TypeError: if ``forward`` does not name each state.
        """
        _, _, *states = inspect.signature(cls.forward).parameters.values()
        if not states or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in states):
            raise TypeError(
                f"{cls.__name__}.forward must name each state, as in forward(self, input_, v, spikes); "
                f"got {inspect.signature(cls.forward)}"
            )
        return tuple(p.name.removesuffix("_previous") for p in states)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The resting state: by default one tensor of zeros like `input_`, one step of input, per state."""
        return tuple(torch.zeros_like(input_) for _ in self.state_names())

    def rests_at_zero(self) -> bool:
        """Whether all tensors of :meth:`initial_state` are zeros; kernels then need no initial state."""
        return self._starts_with(Cell.initial_state)

    def _starts_with(self, method: object) -> bool:
        """Whether :meth:`initial_state` is `method` of a class, which no subclass or object replaced."""
        return getattr(self.initial_state, "__func__", None) is method


class BuiltIn(Cell):
    """Base class of hibana's cells: ``learn``, hints for other libraries' arguments, and ``repr``."""

    rare: tuple[str, ...] = ()
    """Options that ``repr`` shows only if they differ from their defaults."""

    def _learn(self, names: str | Sequence[str]) -> None:
        """Replaces the values `names` by trainable parameters.

        Raises ValueError if a name is not that of a value with a range.
        """
        ranges = self._ranges()
        for name in [names] if isinstance(names, str) else names:
            if name not in ranges:
                raise ValueError(f"learn must name values among {', '.join(sorted(ranges))}; got {name!r}")
            if not isinstance(self._parameters.get(name), nn.Parameter):
                ranges[name].learn(self)

    @classmethod
    def _ranges(cls) -> dict[str, AtLeast]:
        """The values with a range, by name."""
        attributes = [item for kind in cls.__mro__ for item in vars(kind).items()]
        return {name: value for name, value in attributes if isinstance(value, AtLeast)}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Checks the names of the arguments, and that the first is not a number of neurons.

        Raises TypeError for an unknown argument, with the name of hibana's argument, and for an integer
        threshold that looks like a size.
        """
        code = cls.__init__.__code__
        parameters = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        name = cls.__name__.removesuffix("Cell")
        if error := unknown_argument_error(name, kwargs, parameters):
            raise error
        if args and type(args[0]) is int and args[0] > 1 and parameters[0] == "threshold":
            raise TypeError(
                f"the first argument of {name} is its threshold, not a number of neurons, which it takes "
                f"from its input: leave it out, or write threshold={args[0]} if that is meant"
            )
        return super().__new__(cls)

    def extra_repr(self) -> str:
        """The arguments that are not trainable parameters; rare ones only if they are not their defaults."""
        values = {**vars(self), **self._buffers}
        arguments = inspect.signature(type(self)).parameters
        hidden = {name for name in self.rare if values.get(name) is arguments[name].default}
        names = [name for name in arguments if name in values and name not in hidden]
        return ", ".join(f"{name}={values[name]!r}" for name in names)


def check_cell(cell: object) -> None:
    """Checks that `cell` is a :class:`Cell` whose ``__init__`` ran.

    Raises TypeError if not, with the type of `cell`.
    """
    if not isinstance(cell, Cell):
        type_name = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        hint = "; pass its cell, layer.cell" if isinstance(getattr(cell, "cell", None), Cell) else ""
        raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {type_name}{hint}")
    if CACHE_ATTRIBUTE not in vars(cell):
        raise TypeError(f"{type(cell).__name__}.__init__ must call super().__init__() before anything else")


def check_states(cell: Cell, states: object) -> tuple[Tensor, ...]:
    """`states`, the result of a step of `cell`, as a tuple.

    Raises TypeError unless it is a tuple or list with one tensor for each state of the cell.
    """
    names = cell.state_names()
    if isinstance(states, tuple | list) and len(states) == len(names):
        for name, value in zip(names, states, strict=True):
            if not isinstance(value, Tensor):
                raise TypeError(f"{_expected_states(cell)}; {name} is of type {type(value).__name__}")
        return tuple(states)
    if isinstance(states, tuple | list):
        actual = f"{len(states)} for the {len(names)} that it takes after the input"
    else:
        actual = f"a {type(states).__name__}, no tuple"
    raise TypeError(f"{_expected_states(cell)}; got {actual}")


def _expected_states(cell: Cell) -> str:
    """The first half of an error message: the states that ``forward`` of `cell` must return."""
    names = cell.state_names()
    text = ", ".join(names) + "," * (len(names) == 1)
    return f"forward of {type(cell).__name__} must return its states, ({text}), each like the input"
