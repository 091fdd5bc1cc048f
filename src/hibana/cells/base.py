"""What every neuron is: one step as a module, and values that are learnt without leaving their range."""

import inspect
import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hibana.foreign import no_argument

__all__ = ["AtLeast", "Between", "BuiltIn", "Cell", "check_cell", "check_states"]


class Cell(nn.Module):
    """One step of a neuron: ``forward(input_, *state) -> state``, pointwise, the emitted state last.

    Hyper-parameters are attributes: floats, tensors that broadcast against one step of input, or
    ``nn.Parameter``s. A tensor that is assigned becomes a buffer, so it moves with the module.
    """

    emits_spikes: bool | None = None
    """Whether what it emits are zeros and ones. None: as its step says (:func:`hibana.loop.emits_spikes`)."""
    states: tuple[str, ...]
    """:meth:`state_names`, looked up once."""
    made: dict[Any, Any]
    """What :mod:`hibana.loop` has made of the cell; gone as soon as an attribute is set."""

    def __init__(self) -> None:
        super().__init__()
        self._enter()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch leaves it so
        self._enter()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.copy().items() if name != "made"}

    def _enter(self) -> None:
        self.states = self.state_names()

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop("made", None)
        for learned in ("log", "logit"):
            self.__dict__.get("_parameters", {}).pop(f"{learned}_{name}", None)
        plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        known = self.__dict__.get("_buffers", {})
        if plain and name not in known and name not in self.__dict__.get("_parameters", {}):
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
            return
        if name in known and not isinstance(value, Tensor):
            del known[name]
        super().__setattr__(name, value)

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

    def _learn(self, names: str | Sequence[str]) -> None:
        """Makes parameters of the values called `names`.

        Raises:
            ValueError: if the cell has no value of that name that has a range.
        """
        ranges = {
            name: value
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if _is_range(value)
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
        if error := no_argument(name, kwargs, known):
            raise error
        if args and type(args[0]) is int and args[0] > 1 and known[0] == "threshold":
            raise TypeError(
                f"the first argument of {name} is its threshold, not a number of neurons, which it takes "
                f"from its input: leave it out, or write threshold={args[0]} if that is meant"
            )
        return super().__new__(cls)


def check_cell(cell: object) -> None:
    """Refuses what is no cell, or one that was not made whole.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(cell, Cell):
        got = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {got}")
    if not hasattr(cell, "states"):
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


class AtLeast:
    """A hyper-parameter that stays at `least` or above, whatever an optimiser makes of its parameter.

    Declared in a cell's class, it is what reading the attribute gives: a float or a tensor as it was set, and
    for an ``nn.Parameter`` ``p``, which an optimiser can take anywhere,

        value = p              where p >= least
                2 * least - p  elsewhere

    In its range it is `p`, the user's own object; beyond the bound it counts from there inwards, so that the
    gradient turns `p` back. ``named_parameters()`` and ``state_dict()`` hold `p` under its name either way.

    A value that a cell was asked to learn (``learn="tau"``) is ``least + exp(q)``, which no `q` takes out of
    the range, and which an optimiser changes in proportion; `q` is the parameter ``log_tau``, of one element
    or of as many as the value.

    Args:
        least: the bound; 0 stands for the smallest number of the parameter's precision, since what must be
            positive can't be zero.

    >>> import torch
    >>> from torch import nn
    >>> class Leaky(Cell):
    ...     tau = AtLeast(1.0)
    ...     def __init__(self, tau):
    ...         super().__init__()
    ...         self.tau = tau
    ...     def forward(self, input_, v_previous):
    ...         return (v_previous * (1 - 1 / self.tau) + input_,)
    >>> cell = Leaky(nn.Parameter(torch.tensor(2.0)))
    >>> with torch.no_grad():
    ...     _ = next(cell.parameters()).fill_(0.75)
    >>> cell.tau
    tensor(1.2500, grad_fn=<AddBackward0>)
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}`, which stays at {self.least} or above while it is learned."

    @property
    def learned(self) -> str:
        """The name of the parameter that stands for a value that is learned."""
        return f"log_{self.name}"

    def learn(self, cell: Cell) -> None:
        """Makes a parameter of the value that `cell` has.

        Raises:
            ValueError: if it is infinite, or not above the bound.
        """
        value = torch.as_tensor(
            getattr(cell, self.name), dtype=torch.get_default_dtype(), device=None
        ).detach()
        if not bool((value.isfinite() & (value > self.least)).all()):
            raise ValueError(
                f"{self.name} must be finite and above {self.least} to be learned, got {value!r}"
            )
        one = value.reshape(1) if value.ndim == 0 else value  # what shards parameters takes no scalars
        delattr(cell, self.name)
        setattr(cell, self.learned, nn.Parameter((one - self.least).log()))

    def __get__(self, cell: Cell | None, owner: type) -> Any:
        # a float lies in the instance, where Python finds it before it comes here
        if cell is None:
            return self
        own = vars(cell)
        if self.name in own.get("_buffers", ()):
            return own["_buffers"][self.name]
        if (learned := own.get("_parameters", {}).get(self.learned)) is not None:
            return learned if _is_sharded(learned) else learned.exp() + self.least
        if self.name not in own.get("_parameters", ()):
            raise AttributeError(f"{type(cell).__name__} has no attribute {self.name!r}")
        parameter = own["_parameters"][self.name]
        if _is_sharded(parameter):
            return parameter  # fully_shard keeps it so between calls, and reads it to keep it
        least = max(self.least, torch.finfo(parameter.dtype).tiny)
        if _can_branch_on(parameter) and bool((parameter >= least).all()):
            return parameter
        inside = (parameter >= least).to(parameter.dtype)
        # not torch.where: its derivative takes a truth value per neuron to where kernels take numbers
        return parameter * (2 * inside - 1) + (1 - inside) * (2 * least)


class Between:
    """A hyper-parameter that stays in [`least`, `most`], whatever an optimiser makes of its parameter.

    As :class:`AtLeast`, with two bounds: an ``nn.Parameter`` counts inwards from the bound that it is beyond,
    and a value that a cell was asked to learn is ``least + (most - least) * sigmoid(q)`` with the parameter
    ``logit_NAME``.
    """

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}`, which stays in [{self.least}, {self.most}] while it is learned."

    @property
    def learned(self) -> str:
        """The name of the parameter that stands for a value that is learned."""
        return f"logit_{self.name}"

    def learn(self, cell: Cell) -> None:
        """Makes a parameter of the value that `cell` has.

        Raises:
            ValueError: if it is not within the bounds.
        """
        value = torch.as_tensor(
            getattr(cell, self.name), dtype=torch.get_default_dtype(), device=None
        ).detach()
        part = (value - self.least) / (self.most - self.least)
        if not bool(((part > 0) & (part < 1)).all()):
            within = f"between {self.least} and {self.most}"
            raise ValueError(f"{self.name} must lie {within} to be learned, got {value!r}")
        one = part.reshape(1) if part.ndim == 0 else part
        delattr(cell, self.name)
        setattr(cell, self.learned, nn.Parameter(one.logit()))

    def __get__(self, cell: Cell | None, owner: type) -> Any:
        if cell is None:
            return self
        own = vars(cell)
        if self.name in own.get("_buffers", ()):
            return own["_buffers"][self.name]
        if (learned := own.get("_parameters", {}).get(self.learned)) is not None:
            if _is_sharded(learned):
                return learned
            return torch.sigmoid(learned) * (self.most - self.least) + self.least
        if self.name not in own.get("_parameters", ()):
            raise AttributeError(f"{type(cell).__name__} has no attribute {self.name!r}")
        parameter = own["_parameters"][self.name]
        if _is_sharded(parameter):
            return parameter
        above = (parameter >= self.least).to(parameter.dtype)
        value = parameter * (2 * above - 1) + (1 - above) * (2 * self.least)
        below = (value <= self.most).to(parameter.dtype)
        return value * (2 * below - 1) + (1 - below) * (2 * self.most)


def _is_range(value: object) -> bool:
    return isinstance(value, AtLeast | Between)


def _is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds a part of `parameter`; no step runs on such a one."""
    distributed = sys.modules.get("torch.distributed.tensor")  # loaded by whoever shards
    return distributed is not None and isinstance(parameter, distributed.DTensor)


def _can_branch_on(parameter: Tensor) -> bool:
    """Whether what `parameter` holds now may decide what is computed: not what is written down for later.

    What writes one down (a trace of the step, :func:`torch.func.functional_call`, fake tensors) puts other
    tensors in the parameters' place, is a mode, or says so.
    """
    return (
        type(parameter) is nn.Parameter
        and not parameter.is_meta
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None  # of torch.jit.trace
        and torch._C._len_torch_dispatch_stack() == 0
        and not (parameter.is_cuda and torch.cuda.is_current_stream_capturing())
    )
