"""Cells over time, as layers that sit in ``nn.Sequential`` like an activation.

A layer takes a sequence ``[T, ...]`` and returns the emitted sequence. Every call starts at rest:
there is no hidden state and nothing to reset. To go on from a state, ask for it with :func:`hibana.run`.
"""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast, final

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells.base import check_cell
from hibana.cells.surrogate import in_forward_mode
from hibana.compiler import (
    State,
    call_context,
    check_backend,
    check_batch,
    run_cell,
    unroll_compiled,
    unroll_layer,
)
from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.tensors import cached_parametrizations, evaluate_parametrizations
from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.nn import running
from hibana.nn.running import Stateful, check_knows_no_time, run
from hibana.runtime import torch_internals

__all__ = [
    "ALIF",
    "AdLIF",
    "EIF",
    "IF",
    "LI",
    "LIF",
    "PLIF",
    "QIF",
    "CubaLIF",
    "Izhikevich",
    "OverTime",
    "Recurrent",
    "RefractoryLIF",
    "ResonateAndFire",
    "SiLIF",
    "checked_gradient_scale",
    "damped",
    "run",
]


Arguments = ParamSpec("Arguments")


class OverTime(Stateful):
    """`cell` over a whole sequence: ``[T, ...] -> [T, ...]``.

    Args:
        cell: one step of a neuron.
        backend: what runs it, as in :func:`hibana.unroll`; ``"reference"`` has derivatives of every order.

    >>> import torch, hibana as hb
    >>> layer = hb.OverTime(hb.IFCell(threshold=0.5))
    >>> layer(torch.full([3, 2], 0.3)).shape
    torch.Size([3, 2])
    """

    backend = "auto"

    def __init__(self, cell: cells.Cell, *, backend: str = "auto") -> None:
        super().__init__()
        check_cell(cell)
        self.cell = cell
        _choose(self, backend)

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """What the cell emits over `inputs`, ``[T, ...]``; with `return_state` also its last state."""
        if type(inputs) is not Tensor and is_fx_proxy(inputs):
            return fx_leaf_call(self, inputs, state, return_state=return_state)
        if call_context.run_active:
            return running.served(self, inputs, state, return_state)
        if return_state:
            return self.over_time(inputs, state)
        # a module takes longer to find its own module than most of what follows
        cell: cells.Cell = self._modules["cell"]  # type: ignore[assignment]
        return run_cell(cell, inputs, state, backend=self.backend, is_layer=True)[0]

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the cell emits over `inputs`, ``[T, batch, ...]``, from `state`, and its last state."""
        check_batch(inputs)
        cell: cells.Cell = self._modules["cell"]  # type: ignore[assignment] # as above
        return unroll_layer(cell, inputs, state, backend=self.backend)

    def is_cell_alone(self) -> bool:
        kind, own = type(self), OverTime
        return (kind.forward, kind.over_time, kind.__call__) == (own.forward, own.over_time, own.__call__)

    def extra_repr(self) -> str:
        return "" if self.backend == "auto" else f"backend={self.backend!r}"


def _choose(layer: "OverTime | Recurrent", backend: str) -> None:
    """Has `layer` run by `backend`; by what serves, which its class says, if it is ``"auto"``."""
    check_backend(backend)
    if backend != "auto":
        layer.backend = backend


GRADIENT_SCALE = 0.5
"""Of the gradient through a recurrent layer's synapses, chosen by measurement (``docs/how/synapses.md``)."""


@final
class Recurrent(Stateful):
    """`cell` over time with a weight matrix from what it emits back to its input: ``[T, B, F] -> [T, B, F]``.

        state_t = cell(input_t + W s_(t-1), state_(t-1)),   s the emitted state

    Back through W the gradient is multiplied by `gradient_scale` at each step: over many steps it would
    explode, where surrogate and weights make of each step more than they were given (see *When it does not
    learn* in the documentation). What the layer computes is the same.

    A linear map, ``nn.Linear`` or :class:`hibana.Linear`, is compiled with the cell as one step, and adds a
    row of weights per spike. Another module (a convolution, a network) is called at each step in a Python
    loop, with the cell alone compiled; :func:`hibana.explain` says which it is. Tensors that a
    parametrisation computes, as ``spectral_norm`` of ``torch.nn.utils.parametrizations`` does, are computed
    once a call, as those of ``torch.nn.RNN`` are; a hook on `recurrent` runs at each step. Through
    :func:`run` a sequence can be taken in chunks; detach the state between them for backpropagation through
    time truncated to a chunk.

    Args:
        cell: one step of a neuron.
        features: F, the number of neurons; of channels, where `recurrent` maps ``[B, F, ...]``.
        recurrent: the module from ``[B, F]`` spikes to ``[B, F]`` input; ``nn.Linear(F, F, bias=False)`` with
            its own initialisation, if none is given. With another one, such as a convolution, the input may
            be ``[T, B, F, ...]``.
        gradient_scale: of the gradient through `recurrent`, in [0, 1]; 1 is the whole derivative, 0 cuts the
            path through the synapses off.
        backend: what runs it, as in :func:`hibana.unroll`.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if `gradient_scale` is not in [0, 1], the input is not ``[T, B, F, ...]``, or `recurrent`
            holds a layer over time.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons*; Werbos (1990), *Backpropagation through time*, for the truncation.

    >>> import torch, hibana as hb
    >>> layer = hb.Recurrent(hb.IFCell(), 3)
    >>> x = torch.rand(8, 1, 3)
    >>> outputs, state = hb.run(layer, x[:4])
    >>> state = {name: tuple(part.detach() for part in parts) for name, parts in state.items()}
    >>> outputs, state = hb.run(layer, x[4:], state)
    """

    backend = "auto"
    holds_step = True

    def __init__(
        self,
        cell: cells.Cell,
        features: int,
        recurrent: nn.Module | None = None,
        *,
        gradient_scale: float = GRADIENT_SCALE,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_cell(cell)
        self.cell = cell
        _choose(self, backend)
        self.features = features
        self.gradient_scale = checked_gradient_scale(gradient_scale)
        if recurrent is not None:
            check_knows_no_time("recurrent", recurrent)
        self.recurrent = nn.Linear(features, features, bias=False) if recurrent is None else recurrent
        self.step()  # made here, since a graph that is being compiled can make no module

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the cell emits over `inputs`, ``[T, B, F]``, from `state`, and its last state."""
        flat = isinstance(self.recurrent, TORCH_LAYERS["linear"])
        wrong = inputs.ndim != 3 if flat else inputs.ndim < 3
        if wrong or inputs.shape[0] == 0 or inputs.shape[2] != self.features:
            raise ValueError(
                f"inputs must be [T, B, {self.features}] with T at least 1, got shape {tuple(inputs.shape)}; "
                f"weights to the {self.features} neurons, such as a linear layer, are a layer of their own"
            )
        step = evaluate_parametrizations(self.step())
        whole = unroll_compiled(step, inputs, state, backend=self.backend)
        if whole is not None:
            return whole
        if state is None:
            state = self.cell.initial_state(inputs[0])
        emitted = []
        with cached_parametrizations():
            for input_ in inputs:
                fed_back = damped(step.recurrent(state[-1].to(inputs.dtype)), self.gradient_scale)
                outputs, state = unroll_layer(
                    step.cell, (input_ + fed_back)[None], state, backend=self.backend
                )
                emitted.append(outputs)
        return torch.cat(emitted), state

    def step(self) -> "RecurrentCell":
        """The cell and what feeds its spikes back to it, as one step."""
        made: RecurrentCell | None = self.__dict__.get("_step")
        if made is None or made.made_of() != (self.cell, self.recurrent, self.gradient_scale):
            # not as a module of this one, which has both already
            made = RecurrentCell(self.cell, self.recurrent, self.gradient_scale)
            self.__dict__["_step"] = made
        return made


class RecurrentCell(cells.Cell):
    """One step of `cell` on its input and what `recurrent` makes of what it emitted last."""

    cell: cells.Cell

    def __init__(self, cell: cells.Cell, recurrent: nn.Module, gradient_scale: float) -> None:
        nn.Module.__init__(self)
        self.cell, self.recurrent, self.gradient_scale = cell, recurrent, gradient_scale
        self._enter()

    def made_of(self) -> tuple[cells.Cell, nn.Module, float]:
        """What it was made with."""
        return self.cell, self.recurrent, self.gradient_scale

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        fed_back = damped(self.recurrent(state[-1]), self.gradient_scale)
        return self.cell(input_ + fed_back, *state)  # type: ignore[no-any-return]

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # they are those of the cell it has
        return self.cell.state_names()

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return self.cell.initial_state(input_)

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()


def checked_gradient_scale(scale: float) -> float:
    """`scale`, of the gradient through the synapses, if it lies in [0, 1]; else raises ValueError."""
    if isinstance(scale, bool) or not 0 <= scale <= 1:
        raise ValueError(f"gradient_scale must lie in [0, 1], got {scale!r}")
    return float(scale)


def damped(current: Tensor, scale: float) -> Tensor:
    """`current`, whose gradient is multiplied by `scale`."""
    if scale == 1:
        return current
    if torch.compiler.is_compiling() or torch_internals.jit_trace() is not None or in_forward_mode():
        return current + (current - current.detach()) * (scale - 1)  # NaN, of an infinite one
    scaled: Tensor = _Damped.apply(current, scale)  # type: ignore[no-untyped-call] # torch leaves it so
    return scaled


class _Damped(torch.autograd.Function):
    """Nothing, to a step; its gradient's product with a number. Saved and transformed code writes it out."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return current.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.scale, None


def _layer(name: str, cell: Callable[Arguments, cells.Cell]) -> Callable[Arguments, OverTime]:
    """The layer of `cell`: ``OverTime(cell(...))`` under a name of its own."""

    def __init__(  # noqa: N807 - it becomes the method of the class below
        self: OverTime, *args: Any, backend: str = "auto", **kwargs: Any
    ) -> None:
        OverTime.__init__(self, cell(*args, **kwargs), backend=backend)

    own = inspect.signature(cell)
    chosen = inspect.signature(OverTime).parameters["backend"]
    body = {
        "__init__": __init__,
        "__module__": __name__,
        "__signature__": own.replace(parameters=[*own.parameters.values(), chosen]),
        "__doc__": _over_time(cell),
    }
    return cast(Callable[Arguments, OverTime], type(name, (OverTime,), body))


def _over_time(cell: Callable[Arguments, cells.Cell]) -> str:
    """What the layer of `cell` says of itself: what the cell does, but its example, and `backend`."""
    text = inspect.getdoc(cell) or ""
    text = text.partition(">>> ")[0].rstrip()
    summary, _, rest = text.partition("\n")
    over_time = f"Over a whole sequence, ``[T, batch, ...]``: ``OverTime({cell.__name__}(...))``."
    arguments, source, named = rest.partition("\n\nSource:")
    backend = "    backend: what runs it, as in :func:`hibana.unroll`."
    return f"{summary}\n\n{over_time}\n{arguments}\n{backend}{source}{named}\n"


IF = _layer("IF", cells.IFCell)
LIF = _layer("LIF", cells.LIFCell)
PLIF = _layer("PLIF", cells.PLIFCell)
CubaLIF = _layer("CubaLIF", cells.CubaLIFCell)
ALIF = _layer("ALIF", cells.ALIFCell)
AdLIF = _layer("AdLIF", cells.AdLIFCell)
RefractoryLIF = _layer("RefractoryLIF", cells.RefractoryLIFCell)
EIF = _layer("EIF", cells.EIFCell)
QIF = _layer("QIF", cells.QIFCell)
Izhikevich = _layer("Izhikevich", cells.IzhikevichCell)
ResonateAndFire = _layer("ResonateAndFire", cells.ResonateAndFireCell)
SiLIF = _layer("SiLIF", cells.SiLIFCell)
LI = _layer("LI", cells.LICell)
