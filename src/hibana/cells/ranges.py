"""Hyperparameters that stay in a range while they are learned, as descriptors of a cell's class."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from hibana.runtime import torch_internals


class AtLeast:
    """A hyperparameter that stays at `least` or above, for any value of its parameter.

    It is declared in a cell's class. The attribute's value is a float or tensor as it was set, and for an
    ``nn.Parameter`` ``p``, which an optimizer may move out of the range,

        value = p              where p >= least
                2 * least - p  elsewhere

    Inside the range, the value is the object `p` itself. Outside, it is reflected at the bound, so that the
    gradient moves `p` back. ``named_parameters()`` and ``state_dict()`` contain `p` under the attribute's
    name.

    A value in the cell's ``learn`` (``learn="tau"``) is ``least + exp(q)``, which is in the range for every
    `q`, and which an optimizer changes in proportion. `q` is the parameter ``log_tau``, with as many elements
    as the value.

    Args:
        least: the bound; 0 means the smallest positive number of the parameter's dtype.

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

    name: str
    prefix = "log"
    """Prefix of :attr:`parameter_name`."""

    def __init__(self, least: float) -> None:
        self.least = least

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}`, which stays {self} while it is learned."

    def __str__(self) -> str:
        return f"at {self.least} or above"

    def _reflect(self, parameter: Tensor) -> Tensor:
        """`parameter` where it is at least `least`, else ``2 * least - parameter``."""
        least = max(self.least, torch.finfo(parameter.dtype).tiny)
        if _can_branch_on(parameter) and bool((parameter >= least).all()):
            return parameter
        inside = (parameter >= least).to(parameter.dtype)
        # not torch.where: its derivative needs a boolean parameter, and kernels take numbers
        return parameter * (2 * inside - 1) + (1 - inside) * (2 * least)

    def _inverse(self, value: Tensor) -> Tensor:
        """``log(value - least)``; raises ValueError unless all values are finite and above `least`."""
        if not bool((value.isfinite() & (value > self.least)).all()):
            raise ValueError(
                f"{self.name} must be finite and above {self.least} to be learned, got {value!r}"
            )
        return (value - self.least).log()

    def _value(self, parameter: Tensor) -> Tensor:
        """The value ``least + exp(parameter)``."""
        return parameter.exp() + self.least

    @property
    def parameter_name(self) -> str:
        """The name of the parameter of a value in the cell's ``learn``."""
        return f"{self.prefix}_{self.name}"

    def learn(self, cell: nn.Module) -> None:
        """Replaces the value in `cell` by the parameter :attr:`parameter_name`.

        Raises ValueError if the value is not inside the range.
        """
        value = torch.as_tensor(getattr(cell, self.name), dtype=torch.get_default_dtype(), device=None)
        parameter = self._inverse(value.detach())
        delattr(cell, self.name)
        parameter = parameter.reshape(1) if parameter.ndim == 0 else parameter  # FSDP shards no scalars
        setattr(cell, self.parameter_name, nn.Parameter(parameter))

    def __get__(self, cell: nn.Module | None, owner: type) -> Any:
        """The hyperparameter's value in `cell`; the descriptor itself if read from the class."""
        # Python does not call this for a float, which is in the instance's dictionary
        if cell is None:
            return self
        buffers, parameters = vars(cell).get("_buffers", {}), vars(cell).get("_parameters", {})
        if self.name in buffers:  # a tensor that is not learned
            return buffers[self.name]
        if (learned := parameters.get(self.parameter_name)) is not None:  # named in the cell's `learn`
            return learned if _is_sharded(learned) else self._value(learned)
        if self.name in parameters:  # set as an nn.Parameter
            parameter = parameters[self.name]
            # fully_shard reads a sharded parameter between calls, and must get the parameter itself
            return parameter if _is_sharded(parameter) else self._reflect(parameter)
        raise AttributeError(f"{type(cell).__name__} has no attribute {self.name!r}")


class Between(AtLeast):
    """A hyperparameter that stays in [`least`, `most`], for any value of its parameter.

    It is like :class:`AtLeast` with two bounds: an ``nn.Parameter`` outside of the range is reflected at the
    nearest bound, and a value in the cell's ``learn`` is ``least + (most - least) * sigmoid(q)`` with the
    parameter ``logit_NAME``.
    """

    prefix = "logit"

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __str__(self) -> str:
        return f"in [{self.least}, {self.most}]"

    def _reflect(self, parameter: Tensor) -> Tensor:
        """`parameter`, reflected at `least` where it is below, then at `most` where it is above."""
        above = (parameter >= self.least).to(parameter.dtype)
        value = parameter * (2 * above - 1) + (1 - above) * (2 * self.least)
        below = (value <= self.most).to(parameter.dtype)
        return value * (2 * below - 1) + (1 - below) * (2 * self.most)

    def _inverse(self, value: Tensor) -> Tensor:
        """The parameter q with ``least + (most - least) * sigmoid(q) = value``."""
        fraction = (value - self.least) / (self.most - self.least)
        if not bool(((fraction > 0) & (fraction < 1)).all()):
            bounds = f"between {self.least} and {self.most} to be learned"
            raise ValueError(f"{self.name} must lie {bounds}, got {value!r}")
        return fraction.logit()

    def _value(self, parameter: Tensor) -> Tensor:
        """The value ``least + (most - least) * sigmoid(parameter)``."""
        return torch.sigmoid(parameter) * (self.most - self.least) + self.least


def _is_sharded(parameter: Tensor) -> bool:
    """Whether `parameter` is a shard; no step runs on a shard."""
    distributed = sys.modules.get("torch.distributed.tensor")  # imported before any tensor is sharded
    return distributed is not None and isinstance(parameter, distributed.DTensor)


def _can_branch_on(parameter: Tensor) -> bool:
    """Whether Python may branch on the values of `parameter`: not in a trace, a transform, or on meta."""
    return (
        type(parameter) is nn.Parameter
        and not parameter.is_meta
        and not torch.compiler.is_compiling()
        and torch_internals.jit_trace() is None  # of torch.jit.trace
        and torch_internals.dispatch_mode_count() == 0
        and not (parameter.is_cuda and torch.cuda.is_current_stream_capturing())
    )
