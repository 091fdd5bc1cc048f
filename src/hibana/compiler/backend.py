"""The interface of a backend, and the registry of backends.

A backend makes kernels that run one step over a sequence, forward and backward, on the devices it serves. It
is loaded with the first step that is compiled for it. One of your own is :func:`register`-ed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hibana.compiler.memory_layout import row_bytes

if TYPE_CHECKING:
    from hibana.compiler.graph.plan import Plan
    from hibana.compiler.graph.step import Step

__all__ = [
    "Backend",
    "BackwardArguments",
    "ForwardArguments",
    "Kernels",
    "Prepared",
    "check_backend",
    "kernels_of",
    "names",
    "of_device",
    "refusal",
    "register",
]


class ForwardArguments(NamedTuple):
    """The arguments of a forward."""

    inputs: Tensor
    """``[T, ...]``, each step contiguous."""
    first: Sequence[Tensor | None]
    """The initial states; None for zeros."""
    parameters: Sequence[Tensor]
    """Of the step: a number, or one per neuron; then its matrices. Contiguous."""
    plan: "Plan | None"
    """The residuals to write, if any."""
    ends: bool = True
    """Whether the last states are wanted."""
    may_offset: bool = True
    """Whether the outputs may begin after the start of their storage."""
    seed: int = 0
    """What the step draws its random numbers from (:mod:`hibana.compiler.draws`), if it does; signed."""


class BackwardArguments(NamedTuple):
    """The arguments of a backward."""

    shape: torch.Size
    """Of the sequences, ``[T, ...]``."""
    inputs: Tensor | None
    """If they are a residual."""
    first: Sequence[Tensor | None]
    """The initial states that `plan` reads; None for zeros, and for those not read."""
    parameters: Sequence[Tensor]
    residuals: Sequence[Tensor]
    """Besides the inputs."""
    grad_outputs: Tensor | None
    """Each step contiguous; None for zeros."""
    last_grads: Sequence[Tensor | None]
    """Gradients of the last states but the emitted one; None for zeros."""
    wants_input: bool
    """Whether the gradient of the input is wanted."""
    wants_first: bool
    """Whether the gradients of the initial states are wanted."""
    may_offset: bool = True
    """Whether the gradient of the input may begin after the start of its storage."""
    seed: int = 0
    """That of the forward."""


class Prepared(NamedTuple):
    """Kernels of a step bound to one shape, for runs from rest of a step without parameters.

    A call packs addresses and launches: around small kernels, checks cost more than the kernels.
    """

    forward: Callable[[Tensor], tuple[Tensor, list[Tensor], list[Tensor]]]
    """From contiguous inputs to what :meth:`Kernels.forward` returns."""
    backward: Callable[[Sequence[Tensor], Tensor], Tensor]
    """From the inputs, if they are a residual, with the other residuals, and the contiguous gradient of the
    outputs to the gradient of the inputs; the last states have no gradient."""


class Kernels(ABC):
    """A step's kernels in one dtype."""

    about: ClassVar[str]
    """The backend, in one line."""
    takes_half: ClassVar[bool] = False
    """Whether sequences may be of half precision; the emitted state is then the last of the last states."""
    takes_draws: ClassVar[bool] = False
    """Whether steps may draw random numbers, by :mod:`hibana.compiler.draws` from the seed of a call."""
    approximate: tuple[str, ...] = ()
    """Operations that the forward computes within 2 ulp of the true value, but not to PyTorch's own bits."""
    step: "Step"
    plan: "Plan"
    emitting: "Plan | None" = None
    """The plan of a forward without a backward that keeps the bits of the outputs; None if it can't."""
    dtype: torch.dtype

    @abstractmethod
    def __init__(self, step: "Step", plan: "Plan", dtype: torch.dtype) -> None:
        """Raises ``Unsupported`` if the step has an operation that this backend has not."""

    @staticmethod
    def device() -> str:
        """The kind of device whose PyTorch the numbers equal."""
        return "cpu"

    def alike(self, step: "Step") -> Self:
        """The same kernels for a `step` that differs in its constants alone."""
        kernels = copy(self)
        kernels._set_step(step)
        return kernels

    def _set_step(self, step: "Step") -> None:
        """Makes these the kernels of `step`: its constants are passed at each launch."""
        self.step = step

    @abstractmethod
    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The outputs ``[T, ...]``, the last states but the emitted if `ends`, the residuals of `plan`."""

    @abstractmethod
    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the initial states, and the sums over time."""

    def prepare(self, plan: "Plan", shape: torch.Size, ends: bool) -> Prepared | None:
        """Kernels bound to sequences of `shape`, with the residuals of `plan`; None if not worthwhile."""
        return None

    @abstractmethod
    def source(self, direction: str, *, keep: bool = True) -> str:
        """The source of the ``"forward"`` or ``"backward"``, for ``explain``."""

    def residual_shapes(
        self, steps: int, one: Sequence[int], plan: "Plan | None" = None
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each residual of `plan`: bits ``[T, ceil(N/8)]``, or numbers.

        Of a step with products, the bits of each sample are whole bytes.
        """
        *samples, neurons = one if self.step.matrices else (prod(one),)
        bits = ((steps, prod(samples) * row_bytes(neurons)), torch.uint8)
        reals = ((steps, *one), self.dtype)
        return [bits if value.boolean else reals for value in (plan or self.plan).stored]

    def check(self, shape: torch.Size) -> None:  # noqa: B027 # most serve all
        """Raises ``Unsupported`` if steps of `shape` can't be served."""


@dataclass(frozen=True)
class Backend:
    """A backend: its name, the types of device that it serves, and its kernels."""

    name: str
    devices: tuple[str, ...]
    kernels: Callable[[bool], type[Kernels]]
    """The class of kernels of a step with (True) or without products; it may raise ``Unsupported``."""
    refuses: Callable[[str], str] | None = None
    """Why it can serve nothing on a type of device, or ``""``; by default as `devices` say."""


_KNOWN: dict[str, Backend] = {}
_OF_DEVICE: dict[str, str] = {}


def register(backend: Backend) -> None:
    """Makes `backend` available by its name, and by ``"auto"`` on devices that no other serves.

    Raises:
        ValueError: if there is one of that name.
    """
    if backend.name in names():
        raise ValueError(f"backend {backend.name!r} is there already")
    _KNOWN[backend.name] = backend
    for device in backend.devices:
        _OF_DEVICE.setdefault(device, backend.name)


def names() -> tuple[str, ...]:
    """All that ``backend=`` takes."""
    return ("auto", "reference", *_KNOWN)


def check_backend(name: str) -> None:
    """Raises ``ValueError`` if there is no backend of that name."""
    if name not in names():
        raise ValueError(f"backend must be one of {', '.join(names())}; got {name!r}")


def of_device(device: str) -> str:
    """The name of the backend that ``"auto"`` asks on a kind of device."""
    return _OF_DEVICE.get(device, "cpu")


def refusal(name: str, device: str) -> str:
    """Why the backend `name` can serve nothing on the type of device `device`, or ``""``."""
    backend = _KNOWN[name]
    if backend.refuses is not None:
        return backend.refuses(device)
    served = ", ".join(backend.devices)
    return "" if device in backend.devices else f"it serves {served}, not {device}"


def kernels_of(name: str, products: bool = False) -> type[Kernels]:
    """The class of the kernels of the backend `name`, for steps with or without `products`.

    Raises:
        Unsupported: if there is none.
    """
    return _KNOWN[name].kernels(products)
