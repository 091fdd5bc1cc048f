"""Hyper-parameters that stay in a range while they are learned, as descriptors of a cell's class."""

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hibana.runtime import torch_internals


class Range(ABC):
    """A hyper-parameter whose value stays in a range, whatever an optimiser makes of its parameter.

    Reading it gives a float or a tensor as it was set, of an ``nn.Parameter`` its value moved into the range,
    and of a value that the cell was asked to learn a function of the parameter :attr:`learned`.
    """

    name: str
    prefix: str
    """Of the name of the parameter of a learned value."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}`, which stays {self} while it is learned."

    @abstractmethod
    def __str__(self) -> str:
        """The range, in words."""

    @abstractmethod
    def _kept(self, parameter: Tensor) -> Tensor:
        """`parameter` in the range, and reflected at the bound elsewhere."""

    @abstractmethod
    def _inverse(self, value: Tensor) -> Tensor:
        """The parameter of a learned `value`; raises ValueError if it is not inside the range."""

    @abstractmethod
    def _value(self, learned: Tensor) -> Tensor:
        """The value of a parameter :attr:`learned`."""

    @property
    def learned(self) -> str:
        """The name of the parameter of a learned value."""
        return f"{self.prefix}_{self.name}"

    def learn(self, cell: nn.Module) -> None:
        """Makes a parameter of the value that `cell` has.

        Raises:
            ValueError: if it does not lie inside the range.
        """
        value = torch.as_tensor(getattr(cell, self.name), dtype=torch.get_default_dtype(), device=None)
        learned = self._inverse(value.detach())
        delattr(cell, self.name)
        one = learned.reshape(1) if learned.ndim == 0 else learned  # what shards parameters takes no scalars
        setattr(cell, self.learned, nn.Parameter(one))

    def __get__(self, cell: nn.Module | None, owner: type) -> Any:
        # a float lies in the instance, where Python finds it before it comes here
        if cell is None:
            return self
        own = vars(cell)
        if self.name in own.get("_buffers", ()):
            return own["_buffers"][self.name]
        parameters = own.get("_parameters", {})
        if (learned := parameters.get(self.learned)) is not None:
            return learned if _is_sharded(learned) else self._value(learned)
        if self.name not in parameters:
            raise AttributeError(f"{type(cell).__name__} has no attribute {self.name!r}")
        parameter = parameters[self.name]
        # fully_shard keeps it so between calls, and reads it to keep it
        return parameter if _is_sharded(parameter) else self._kept(parameter)


class AtLeast(Range):
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
    >>> import hibana as hb
    >>> from torch import nn
    >>> class Leaky(hb.Cell):
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

    prefix = "log"

    def __init__(self, least: float) -> None:
        self.least = least

    def __str__(self) -> str:
        return f"at {self.least} or above"

    def _kept(self, parameter: Tensor) -> Tensor:
        least = max(self.least, torch.finfo(parameter.dtype).tiny)
        if _can_branch_on(parameter) and bool((parameter >= least).all()):
            return parameter
        inside = (parameter >= least).to(parameter.dtype)
        # not torch.where: its derivative takes a truth value per neuron to where kernels take numbers
        return parameter * (2 * inside - 1) + (1 - inside) * (2 * least)

    def _inverse(self, value: Tensor) -> Tensor:
        if not bool((value.isfinite() & (value > self.least)).all()):
            raise ValueError(
                f"{self.name} must be finite and above {self.least} to be learned, got {value!r}"
            )
        return (value - self.least).log()

    def _value(self, learned: Tensor) -> Tensor:
        return learned.exp() + self.least


class Between(Range):
    """A hyper-parameter that stays in [`least`, `most`], whatever an optimiser makes of its parameter.

    As :class:`AtLeast`, with two bounds: an ``nn.Parameter`` counts inwards from the bound that it is beyond,
    and a value that a cell was asked to learn is ``least + (most - least) * sigmoid(q)`` with the parameter
    ``logit_NAME``.
    """

    prefix = "logit"

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __str__(self) -> str:
        return f"in [{self.least}, {self.most}]"

    def _kept(self, parameter: Tensor) -> Tensor:
        above = (parameter >= self.least).to(parameter.dtype)
        value = parameter * (2 * above - 1) + (1 - above) * (2 * self.least)
        below = (value <= self.most).to(parameter.dtype)
        return value * (2 * below - 1) + (1 - below) * (2 * self.most)

    def _inverse(self, value: Tensor) -> Tensor:
        part = (value - self.least) / (self.most - self.least)
        if not bool(((part > 0) & (part < 1)).all()):
            within = f"between {self.least} and {self.most}"
            raise ValueError(f"{self.name} must lie {within} to be learned, got {value!r}")
        return part.logit()

    def _value(self, learned: Tensor) -> Tensor:
        return torch.sigmoid(learned) * (self.most - self.least) + self.least


def _is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds a shard of `parameter`; no step runs on a shard."""
    distributed = sys.modules.get("torch.distributed.tensor")  # loaded by whoever shards
    return distributed is not None and isinstance(parameter, distributed.DTensor)


def _can_branch_on(parameter: Tensor) -> bool:
    """Whether the values of `parameter` may decide what is computed: not under a trace or transform."""
    return (
        type(parameter) is nn.Parameter
        and not parameter.is_meta
        and not torch.compiler.is_compiling()
        and torch_internals.jit_trace() is None  # of torch.jit.trace
        and torch_internals.dispatch_mode_count() == 0
        and not (parameter.is_cuda and torch.cuda.is_current_stream_capturing())
    )
