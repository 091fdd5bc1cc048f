"""The interface of a backend, and the registry of backends.

A backend makes kernels: functions that run one step over a sequence, forward and back, on the kinds of device
that it serves. It is asked for when a step is compiled for it, and loaded then. One of your own is
:func:`register`-ed, and asked for by its name or, if it serves a device that no other does, by ``"auto"``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hibana.compiler.packed import row_bytes
from hibana.compiler.producer import Producer

if TYPE_CHECKING:
    from hibana.compiler.graph.plan import Plan
    from hibana.compiler.graph.step import Step

__all__ = [
    "Backend",
    "BackwardArguments",
    "ForwardArguments",
    "Kernels",
    "Launch",
    "kernels_of",
    "names",
    "of_device",
    "refusal",
    "register",
]

Launch = Callable[[Tensor, Any], tuple[Tensor, list[Tensor]]]
"""A run from rest: inputs and the run's specification, which its node carries, to the outputs and the last
states but the emitted one, if they are wanted."""


class ForwardArguments(NamedTuple):
    """What a forward is given."""

    inputs: Tensor
    """``[T, ...]``, each step contiguous."""
    first: Sequence[Tensor | None]
    """The states begun with; None for zeros."""
    parameters: Sequence[Tensor]
    """Of the step: a number, or one per neuron; then its matrices. Contiguous; of `patterns_from` neurons on,
    what comes again and again in memory may be given once."""
    plan: "Plan | None"
    """Whose residuals are kept, if it is given."""
    ends: bool = True
    """Whether the last states are wanted."""
    may_offset: bool = True
    """Whether what is emitted may begin later than its memory does."""


class BackwardArguments(NamedTuple):
    """What a backward is given."""

    plan: "Plan"
    shape: torch.Size
    """Of the sequences, ``[T, ...]``."""
    inputs: Tensor | None
    """If they are a residual."""
    first: Sequence[Tensor | None]
    """The states begun with that `plan` reads; None for zeros, and for those not read."""
    parameters: Sequence[Tensor]
    residuals: Sequence[Tensor]
    """Besides the inputs."""
    grad_outputs: Tensor | None
    """Each step contiguous; None for zeros."""
    last_grads: Sequence[Tensor | None]
    """Gradients of the last states but the emitted one; None for zeros."""
    wants_input: bool
    """Whether the gradient of the input is wanted."""
    constant: bool
    """Whether it is then summed over time."""
    wants_first: bool
    """Whether the gradients of the states begun with are wanted."""
    reduced: Sequence[int] = ()
    """For each of the sums over time, over how many of the first dimensions of a step it may be summed too,
    which then have the size 1; none, if there is nothing here."""
    may_offset: bool = True
    """Whether the gradient of the input may begin later than its memory does."""
    uniform_grad: Tensor | None = None
    """What is added to all of `grad_outputs`, without dimensions: only for those that take it."""


class Kernels(ABC):
    """A step's kernels in one dtype."""

    about: ClassVar[str]
    """The backend, in one line."""
    takes_half: ClassVar[bool] = False
    """Whether sequences may be of half precision; the emitted state is then the last of the last states."""
    takes_uniform: ClassVar[bool] = False
    """Whether a gradient that is the same for all that was emitted is added as it is read."""
    patterns_from: float = inf
    """How many neurons there are at least where a parameter may be given as what comes again and again."""
    approximate: tuple[str, ...] = ()
    """What the forward computes within 2 ulp of the true value, but not to PyTorch's own bits."""
    step: "Step"
    plan: "Plan"
    recomputing: "Plan | None" = None
    """The plan for sequences so long that the backward recomputes them, in tiles; None if there is none."""
    emitting: "Plan | None" = None
    """The plan by which a forward without a backward keeps the bits of what it emits; None if it can't."""
    dtype: torch.dtype

    @abstractmethod
    def __init__(self, step: "Step", plan: "Plan", dtype: torch.dtype) -> None:
        """Raises ``Unsupported`` if the step computes what can't be had here."""

    @staticmethod
    def device() -> str:
        """The kind of device whose PyTorch the numbers equal."""
        return "cpu"

    def alike(self, step: "Step") -> Self:
        """The kernels of `step`, which is this one's but for its constants: the same code."""
        kernels = copy(self)
        kernels._take(step)
        return kernels

    def _take(self, step: "Step") -> None:
        """Takes the constants of `step`."""
        self.step = step

    @abstractmethod
    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is emitted ``[T, ...]``, the last states but that if `ends`, and the residuals of `plan`."""

    def forward_over(
        self, producer: Producer, given: ForwardArguments
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same, over inputs that a `producer` has yet to compute."""
        producer.finish()
        return self.forward(given)

    @abstractmethod
    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the states begun with, and the sums over time."""

    @abstractmethod
    def source(self, direction: str, *, keep: bool = True) -> str:
        """What ``explain`` shows of the ``"forward"`` or ``"backward"``."""

    def residual_shapes(
        self, steps: int, one: Sequence[int], plan: "Plan | None" = None
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that a forward by `plan` keeps: bits ``[T, ceil(N/8)]``, or numbers.

        Of a step with products, the bits of each sample are whole bytes.
        """
        *samples, neurons = one if self.step.matrices else (prod(one),)
        bits = ((steps, prod(samples) * row_bytes(neurons)), torch.uint8)
        reals = ((steps, *one), self.dtype)
        return [bits if value.boolean else reals for value in (plan or self.plan).stored]

    def check(self, shape: torch.Size) -> None:  # noqa: B027 # most serve all
        """Raises ``Unsupported`` if steps of `shape` can't be served."""

    def plan_for(self, shape: torch.Size) -> "Plan":
        """The plan for sequences of `shape`."""
        return self.plan

    def launch(self, plan: "Plan | None", shape: torch.Size, ends: bool) -> Launch | None:
        """What runs sequences of `shape` from rest without Python; None if there is nothing that does.

        It keeps what `plan` says for the gradient, which it gives.
        """
        return None


@dataclass(frozen=True)
class Backend:
    """A backend: its name, the kinds of device it serves, and how its kernels are got."""

    name: str
    devices: tuple[str, ...]
    kernels: Callable[[bool], type[Kernels]]
    """From whether a step has products to what makes its kernels; it may raise ``Unsupported``."""
    refuses: Callable[[str], str] | None = None
    """Why it can serve nothing on a kind of device, or ``""``; else as `devices` say."""


_KNOWN: dict[str, Backend] = {}
_OF_DEVICE: dict[str, str] = {}


def register(backend: Backend) -> None:
    """Has `backend` asked for by its name, and by ``"auto"`` on devices that no other serves.

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


def of_device(device: str) -> str:
    """The name of the backend that ``"auto"`` asks on a kind of device."""
    return _OF_DEVICE.get(device, "cpu")


def refusal(name: str, device: str) -> str:
    """Why the backend `name` can serve nothing on `device`, a kind of device, or ``""``."""
    backend = _KNOWN[name]
    if backend.refuses is not None:
        return backend.refuses(device)
    served = ", ".join(backend.devices)
    return "" if device in backend.devices else f"it serves {served}, not {device}"


def kernels_of(name: str, products: bool = False) -> type[Kernels]:
    """What makes kernels of a step for the backend `name`; of one that has `products`.

    Raises:
        Unsupported: if nothing does.
    """
    return _KNOWN[name].kernels(products)
