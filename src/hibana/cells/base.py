"""What every neuron is: one step as a module."""

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hibana.cells.peer_aliases import unknown_argument_error
from hibana.cells.ranges import Range

CACHE_ATTRIBUTE = "_hibana"
"""The one name of a cell's attributes that is not the user's."""


class CellCache:
    """The compiler's caches of one cell, its attribute ``_hibana``, which copies of the cell don't share."""

    __slots__ = ("dependencies", "states")

    def __init__(self, states: tuple[str, ...]) -> None:
        self.states = states
        """:meth:`Cell.state_names`, looked up once."""
        self.dependencies: Any = None
        """All that the step can read, with the programs and calls that this determines; None as soon as an
        attribute is set."""


class Cell(nn.Module):
    """One step of a neuron: ``forward(input_, *state) -> state``, pointwise, the emitted state last.

    Hyper-parameters are attributes: floats, tensors that broadcast against one step of input, or
    ``nn.Parameter``s. A tensor that is assigned becomes a buffer, so it moves with the module.
    """

    emits_spikes: bool | None = None
    """Whether it emits only zeros and ones. None: as its step says (:func:`hibana.compiler.emits_spikes`)."""
    _hibana: CellCache

    def __init__(self) -> None:
        super().__init__()
        self._enter()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch leaves it so
        self._enter()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.copy().items() if name != CACHE_ATTRIBUTE}

    def _enter(self, states: tuple[str, ...] | None = None) -> None:
        self.__dict__[CACHE_ATTRIBUTE] = CellCache(self.state_names() if states is None else states)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__.get(CACHE_ATTRIBUTE)
        if own is not None and self.__dict__.get(name, own) is not value:  # the same object changes nothing
            own.dependencies = None
        if isinstance(range_ := getattr(type(self), name, None), Range):
            self.__dict__.get("_parameters", {}).pop(range_.learned, None)
        elif name == CACHE_ATTRIBUTE:
            raise AttributeError(
                f"{name} is what hibana keeps of a cell; choose another name for the attribute"
            )
        plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        known = self.__dict__.get("_buffers", {})
        if plain and name not in known and name not in self.__dict__.get("_parameters", {}):
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
            return
        if name in known and not isinstance(value, Tensor):
            del known[name]
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        internal = self.__dict__.get(CACHE_ATTRIBUTE)
        if internal is not None:
            internal.dependencies = None
        super().__delattr__(name)

    @abstractmethod
    def forward(self, input_: Tensor, /, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state, from one step of input and the previous state, all of one shape."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(input_, *state) -> state")

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The names of the states: the parameters of ``forward`` after the input, less ``_previous``.

        Those of :class:`hibana.IFCell` are ``("v", "s")``.

        Raises:
            TypeError: if ``forward`` does not name its states one by one.
        """
        _, _, *states = inspect.signature(cls.forward).parameters.values()
        if not states or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in states):
            raise TypeError(
                f"{cls.__name__}.forward must name each state, as in forward(self, input_, v, spikes); "
                f"got {inspect.signature(cls.forward)}"
            )
        return tuple(p.name.removesuffix("_previous") for p in states)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The state at rest: by default zeros like one step of input, one tensor for each state."""
        return tuple(torch.zeros_like(input_) for _ in self.state_names())

    def rests_at_zero(self) -> bool:
        """Whether :meth:`initial_state` is known to be all zeros, which then need not be written out."""
        return type(self).initial_state is Cell.initial_state


class BuiltIn(Cell):
    """A cell of hibana's own, which answers the arguments that other libraries' neurons take."""

    rare: tuple[str, ...] = ()
    """Options that few ask for."""

    def _learn(self, names: str | Sequence[str]) -> None:
        """Makes parameters of the values called `names`.

        Raises:
            ValueError: if the cell has no value of that name that has a range.
        """
        ranges = {
            name: value
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, Range)
        }
        for name in [names] if isinstance(names, str) else names:
            if name not in ranges:
                raise ValueError(f"learn must name values among {', '.join(sorted(ranges))}; got {name!r}")
            if not isinstance(self._parameters.get(name), nn.Parameter):
                ranges[name].learn(self)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses arguments by names that are not the cell's, and a size where there is none.

        Raises:
            TypeError: saying what hibana's argument is.
        """
        code = cls.__init__.__code__
        known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        name = cls.__name__.removesuffix("Cell")
        if error := unknown_argument_error(name, kwargs, known):
            raise error
        if args and type(args[0]) is int and args[0] > 1 and known[0] == "threshold":
            raise TypeError(
                f"the first argument of {name} is its threshold, not a number of neurons, which it takes "
                f"from its input: leave it out, or write threshold={args[0]} if that is meant"
            )
        return super().__new__(cls)

    def extra_repr(self) -> str:
        """The hyper-parameters that are not parameters, as they were given; rare ones if they were."""
        shown = {**vars(self), **self._buffers}
        given = inspect.signature(type(self)).parameters
        rare = [name for name, one in given.items() if name in self.rare and shown.get(name) is one.default]
        names = [name for name in given if name in shown and name not in rare]
        return ", ".join(f"{name}={shown[name]!r}" for name in names)


def check_cell(cell: object) -> None:
    """Refuses what is no cell, or one that was not made whole.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(cell, Cell):
        got = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        hint = "; pass its cell, layer.cell" if isinstance(getattr(cell, "cell", None), Cell) else ""
        raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {got}{hint}")
    if CACHE_ATTRIBUTE not in vars(cell):
        raise TypeError(f"{type(cell).__name__}.__init__ must call super().__init__() before anything else")


def check_states(cell: Cell, given: object) -> tuple[Tensor, ...]:
    """What a step gave, if it is one tensor for each state that the cell takes.

    Raises:
        TypeError: saying what it should give, and what it gave.
    """
    names = cell.state_names()
    if isinstance(given, tuple | list) and len(given) == len(names):
        for name, value in zip(names, given, strict=True):
            if not isinstance(value, Tensor):
                raise TypeError(f"{_wanted(cell)}; {name} is of type {type(value).__name__}")
        return tuple(given)
    if isinstance(given, tuple | list):
        got = f"{len(given)} for the {len(names)} that it takes after the input"
    else:
        got = f"a {type(given).__name__}, no tuple"
    raise TypeError(f"{_wanted(cell)}; got {got}")


def _wanted(cell: Cell) -> str:
    names = cell.state_names()
    listed = ", ".join(names) + "," * (len(names) == 1)
    return f"forward of {type(cell).__name__} must return its states, ({listed}), each like the input"
