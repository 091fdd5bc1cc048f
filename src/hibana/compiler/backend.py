"""The interface of a backend, and the registry of backends.

A backend makes kernels that run one step over a sequence, forward and backward, on the devices that it
serves. It is loaded with the first step that is compiled for it. :func:`register` adds another backend.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.memory_layout import in_layout, row_bytes


class ForwardArguments(NamedTuple):
    """The arguments of a forward."""

    inputs: Tensor
    """``[T, ...]``; the steps fill their memory without gaps. All tensors of one step have their strides."""
    first: Sequence[Tensor | None]
    """The initial states; None for zeros."""
    parameters: Sequence[Tensor]
    """The step's parameters, each one number or one per neuron, then its matrices, which are contiguous."""
    plan: Plan | None
    """The residuals to write; None for none."""
    wants_last: bool = True
    """Whether the caller needs the last states."""
    may_offset: bool = True
    """Whether the outputs may begin after the start of their storage."""
    seed: int = 0
    """The signed seed of the step's random numbers (:mod:`hibana.compiler.draws`)."""


class BackwardArguments(NamedTuple):
    """The arguments of a backward."""

    shape: torch.Size
    """The shape of the sequences, ``[T, ...]``."""
    strides: tuple[int, ...]
    """The strides of one step of the inputs, which all tensors of one step have."""
    inputs: Tensor | None
    """The inputs, if they are a residual."""
    first: Sequence[Tensor | None]
    """The initial states; None for zeros, and for states that the plan does not read."""
    parameters: Sequence[Tensor]
    """The parameters of the forward."""
    residuals: Sequence[Tensor]
    """The residuals other than the inputs."""
    grad_outputs: Tensor | None
    """The gradient of the outputs; None for zeros."""
    last_grads: Sequence[Tensor | None]
    """The gradients of the last states other than the output state; None for zeros."""
    wants_input: bool
    """Whether the caller needs the gradient of the inputs."""
    wants_first: bool
    """Whether the caller needs the gradients of the initial states."""
    may_offset: bool = True
    """Whether the gradient of the inputs may begin after the start of its storage."""
    seed: int = 0
    """The seed of the forward."""


PreparedGradients = tuple[Tensor, list[Tensor]]


class Prepared(NamedTuple):
    """Kernels bound to one shape, for runs of a step without parameters.

    A call only packs addresses and launches: checks would take longer than a small kernel.
    """

    accepts: Callable[[object], bool]
    """Whether :attr:`forward` reads a tuple of initial states as it is."""
    forward: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, list[Tensor], list[Tensor]]]
    """From contiguous inputs and the initial states, none for zeros, to the outputs, all last states, and the
    residuals."""
    backward: Callable[[Sequence[Tensor], Tensor, Sequence[Tensor | None], bool], PreparedGradients] | None
    """From the residuals, the contiguous gradient of the outputs, the gradients of the last states other than
    the output state (None for zeros), and whether initial states need a gradient, to the gradients of the
    inputs and of the initial states; None for a forward without residuals.

    Inputs and initial states that are residuals come first."""


class Kernels(ABC):
    """The kernels of one step in one dtype."""

    about: ClassVar[str]
    """The backend, in one line."""
    takes_half: ClassVar[bool] = False
    """Whether sequences may be of half precision; the last states then include the output state."""
    takes_draws: ClassVar[bool] = False
    """Whether steps may draw random numbers, as :mod:`hibana.compiler.draws` defines them, from a seed."""
    takes_sparse: ClassVar[bool] = False
    """Whether steps may multiply by sparse matrices (:mod:`hibana.compiler.graph.sparse`)."""
    approximate: tuple[str, ...] = ()
    """Operations that the forward computes within 2 ulp of the true value, but not to PyTorch's own bits."""
    step: Step
    plan: Plan
    dtype: torch.dtype

    @abstractmethod
    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        """Raises ``Unsupported`` if this backend lacks an operation of the step."""

    @staticmethod
    def device() -> str:
        """The kind of device, ``"cpu"`` or ``"cuda"``, on which PyTorch computes the same results."""
        return "cpu"

    def for_step(self, step: Step) -> Self:
        """A copy of these kernels for a `step` that differs from their step only in its constants."""
        kernels = copy(self)
        kernels._set_step(step)
        return kernels

    def _set_step(self, step: Step) -> None:
        """Sets the step, whose constants each launch passes to the kernels."""
        self.step = step

    @abstractmethod
    def forward(self, arguments: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the outputs ``[T, ...]``, the last states, and the residuals.

        The output is the last state of a cell, so the last states are without it. Residuals are the values
        that :attr:`plan` stores for the backward pass.
        """

    @abstractmethod
    def backward(
        self, arguments: BackwardArguments
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the initial states, and of parameters, summed over time."""

    def prepare(
        self, plan: Plan | None, shape: torch.Size, wants_last: bool, has_state: bool
    ) -> Prepared | None:
        """Kernels bound to one `shape` of sequences and the stored values of `plan`; None if no faster.

        `has_state`: whether runs have initial states.
        """
        return None

    @abstractmethod
    def source(self, direction: str) -> str:
        """The source of the ``"forward"``, with residuals, or of the ``"backward"``, for ``explain``."""

    @property
    def zero_states(self) -> tuple[None, ...]:
        """Initial states that are zeros."""
        return (None,) * len(self.step.states)

    def parameters(
        self, cell_tensors: Sequence[Tensor], shape: torch.Size, strides: Sequence[int] | None = None
    ) -> list[Tensor]:
        """The parameters of the step, each one number or one per neuron, then its matrices.

        Args:
            cell_tensors: the parameters and buffers of the cell.
            shape: the shape of a step.
            strides: the strides of a step; None if it is contiguous.
        """
        count = self.step.parameters
        if not (count or self.step.matrices):
            return []
        with torch.no_grad():
            values = self.step.prologue(*cell_tensors)
            parameters = [value.to(self.dtype).resolve_neg() for value in values[:count]]
            rows = [value if value.numel() == 1 else value.expand(shape) for value in parameters]
            rows = [row.contiguous() if strides is None else in_layout(row, strides) for row in rows]
            # not the index tensors of sparse matrices: their checks are remembered for these very tensors
            matrices = [t.detach().resolve_neg() if t.is_floating_point() else t for t in values[count:]]
            return rows + matrices

    def residual_shapes(
        self, steps: int, step_shape: Sequence[int]
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """The shape and dtype of each residual of the plan: bits ``[T, ceil(N/8)]`` or numbers ``[T, ...]``.

        `step_shape` is the shape of one of the `steps`. If the step has matrix products, the bits of each
        sample fill whole bytes; otherwise all neurons of a step are one row of bits.
        """
        *samples, neurons = step_shape if self.step.matrices else (prod(step_shape),)
        bits = ((steps, prod(samples) * row_bytes(neurons)), torch.uint8)
        reals = ((steps, *step_shape), self.dtype)
        return [bits if value.boolean else reals for value in self.plan.stored]

    def check(self, shape: torch.Size) -> None:  # noqa: B027 # most backends run every shape
        """Raises ``Unsupported`` if the kernels can't run steps of `shape`."""


@dataclass(frozen=True)
class Backend:
    """A backend: its name, the types of device that it serves, and its kernels."""

    name: str
    devices: tuple[str, ...]
    kernels: Callable[[bool], type[Kernels]]
    """The class of kernels of a step with (True) or without matrix products; it may raise ``Unsupported``."""
    refuses: Callable[[str], str] | None = None
    """Why the backend can't run on a type of device, or ``""``. By default it runs on `devices` only."""


_BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Makes `backend` available by its name, and by ``"auto"`` on devices that no other backend serves.

    Raises ValueError if another backend has that name.
    """
    if backend.name in names():
        raise ValueError(f"backend {backend.name!r} is there already")
    _BACKENDS[backend.name] = backend


def names() -> tuple[str, ...]:
    """All values of the argument ``backend``."""
    return ("auto", "reference", *_BACKENDS)


def check_backend(name: str) -> None:
    """Raises ``ValueError`` if no backend has that name."""
    if name not in names():
        raise ValueError(f"backend must be one of {', '.join(names())}; got {name!r}")


def default_backend(device: str) -> str:
    """The name of the backend that ``"auto"`` chooses on a type of device: the first that serves it."""
    return next((backend.name for backend in _BACKENDS.values() if device in backend.devices), "cpu")


def refusal(name: str, device: str) -> str:
    """Why the backend `name` can't run on the type of device `device`, or ``""``."""
    backend = _BACKENDS[name]
    if backend.refuses is not None:
        return backend.refuses(device)
    served = ", ".join(backend.devices)
    return "" if device in backend.devices else f"it serves {served}, not {device}"


def kernel_class(name: str, products: bool = False) -> type[Kernels]:
    """The class of the kernels of the backend `name`, for steps with or without matrix `products`.

    Raises Unsupported if the backend lacks such kernels.
    """
    return _BACKENDS[name].kernels(products)
