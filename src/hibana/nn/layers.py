"""Cells over time, as layers that sit in ``nn.Sequential`` like an activation.

A layer takes a sequence ``[T, ...]`` and returns the sequence of outputs. Every call starts at rest:
there is no hidden state and nothing to reset. :func:`hibana.run` continues from a state.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells.base import check_cell
from hibana.cells.surrogate import in_forward_mode
from hibana.compiler import (
    State,
    check_backend,
    check_batch,
    run_cell,
    unroll_compiled,
    unroll_layer,
)
from hibana.compiler.analysis.passive import grouped_form_of_cell
from hibana.compiler.call_context import is_traced_or_transformed
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.tensors import cached_parametrizations, evaluate_parametrizations
from hibana.nn.running import LooksBack, Stateful, check_knows_no_time, run
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
    "ExactLIF",
    "Izhikevich",
    "OverTime",
    "Recurrent",
    "RefractoryLIF",
    "ResonateAndFire",
    "SiLIF",
    "run",
]


Arguments = ParamSpec("Arguments")


class OverTime(Stateful):
    """`cell` over a sequence: ``[T, ...] -> [T, ...]``.

    Args:
        cell: one step of a neuron.
        backend: the backend that runs it, as in :func:`hibana.unroll`; ``"reference"`` has derivatives of
            every order.

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
        check_backend(backend)
        self.backend = backend

    def outputs_over_time(self, inputs: Tensor, state: State | None) -> Tensor:
        """The outputs of the cell for `inputs`, ``[T, ...]``, from `state`."""
        # not self.cell, whose lookup takes longer than the rest of this method
        cell: cells.Cell = self._modules["cell"]  # type: ignore[assignment]
        return run_cell(cell, inputs, state, backend=self.backend, is_layer=True)[0]

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The outputs of the cell for `inputs`, ``[T, batch, ...]``, from `state`, and its last state."""
        check_batch(inputs)
        cell: cells.Cell = self._modules["cell"]  # type: ignore[assignment] # as above
        return unroll_layer(cell, inputs, state, backend=self.backend)

    def extra_repr(self) -> str:
        return "" if self.backend == "auto" else f"backend={self.backend!r}"


GRADIENT_SCALE = 0.5
"""Default factor of the gradient through recurrent synapses, as measured in ``docs/how/synapses.md``."""


class Recurrent(Stateful):
    """`cell` over time with a weight matrix from its output to its input: ``[T, B, F] -> [T, B, F]``.

        state_t = cell(input_t + W s_(t-1), state_(t-1)),   s the output state

    The gradient through W is multiplied by `gradient_scale` at each step: if surrogate and weights enlarge it
    at each step, it explodes over many steps (see *When it does not learn* in the documentation). The outputs
    do not depend on `gradient_scale`.

    A linear map, ``nn.Linear``, :class:`hibana.Linear` or :class:`hibana.SparseLinear`, is compiled with the
    cell as one step, and adds a row of weights per spike. With delays d of a :class:`hibana.SparseLinear` or
    :class:`hibana.DelayedLinear`, a synapse reads ``s_(t - 1 - d)``; a Python loop runs the steps, in
    blocks as long as the shortest delay of a :class:`hibana.SparseLinear` and one step, and the
    state in :func:`run` is the state of the cell and then the spikes of the steps before the last one,
    ``[longest delay, B, F]``.

    Another module (a convolution, a network) runs at each step in a Python loop, with only the cell compiled;
    :func:`hibana.explain` shows which of both applies. Tensors of a parametrization, such as
    ``spectral_norm`` of ``torch.nn.utils.parametrizations``, are computed once per call, as in
    ``torch.nn.RNN``; a hook on `recurrent` runs at each step. :func:`run` can process a sequence in chunks;
    detach the state between them for truncated backpropagation through time.

    Args:
        cell: one step of a neuron.
        features: F, the number of neurons, or of channels if `recurrent` maps ``[B, F, ...]``.
        recurrent: the module from ``[B, F]`` spikes to ``[B, F]`` input; if None,
            ``nn.Linear(F, F, bias=False)`` with its default initialization. With another module, such as a
            convolution, the input may be ``[T, B, F, ...]``.
        gradient_scale: the factor of the gradient through `recurrent`, in [0, 1]; 1 is the exact derivative,
            0 removes the path through the synapses.
        backend: the backend that runs it, as in :func:`hibana.unroll`.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if `gradient_scale` is not in [0, 1], the input is not ``[T, B, F, ...]``, or `recurrent`
            contains a layer over time, unless its state is the last steps of its input, as of
            synapses with delays.

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
        check_backend(backend)
        self.backend = backend
        self.features = features
        if isinstance(gradient_scale, bool) or not 0 <= gradient_scale <= 1:
            raise ValueError(f"gradient_scale must lie in [0, 1], got {gradient_scale!r}")
        self.gradient_scale = float(gradient_scale)
        if recurrent is not None and not isinstance(recurrent, LooksBack):
            check_knows_no_time("recurrent", recurrent)
        self.recurrent = nn.Linear(features, features, bias=False) if recurrent is None else recurrent
        self.step()  # creates the step here, because a graph under compilation can't create modules

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The outputs of the cell for `inputs`, both ``[T, B, F]``, from `state`, and its last state."""
        is_linear = hasattr(self.recurrent, "in_features")
        is_wrong = inputs.ndim != 3 if is_linear else inputs.ndim < 3
        if is_wrong or inputs.shape[0] == 0 or inputs.shape[2] != self.features:
            raise ValueError(
                f"inputs must be [T, B, {self.features}] with T at least 1, got shape {tuple(inputs.shape)}; "
                f"weights to the {self.features} neurons, such as a linear layer, are a layer of their own"
            )
        step = evaluate_parametrizations(self.step())
        if isinstance(step.recurrent, LooksBack):  # synapses with delays
            synapses = step.recurrent
            size = 1 if is_traced_or_transformed(inputs) else 1 + synapses.shortest
            feedback = synapses.feedback() if size == 1 else synapses.feedback_of_block(size)
            return self._loop(step.cell, inputs, state, synapses.reach, feedback, size)
        result = unroll_compiled(step, inputs, state, backend=self.backend)
        if result is not None:
            return result
        if state is not None:
            state = *state, inputs.new_zeros(0, *inputs.shape[1:])  # no spikes of steps before the last one
        outputs, last = self._loop(step.cell, inputs, state, 0, lambda spikes: step.recurrent(spikes[-1]))
        return outputs, last[:-1]

    def _loop(
        self,
        cell: cells.Cell,
        inputs: Tensor,
        state: State | None,
        reach: int,
        feedback: Callable[[list[Tensor]], Tensor],
        size: int = 1,
    ) -> tuple[Tensor, State]:
        """The outputs of `cell` for `inputs` plus the feedback of earlier spikes, and the last state.

        Args:
            cell: one step of a neuron.
            inputs: ``[T, B, F, ...]``.
            state: the states of the cell, and the spikes of the `reach` steps before the last one; None: at
                rest.
            reach: the longest delay in steps, in addition to the one step that every spike takes.
            feedback: from the spikes ``[B, F, ...]`` of the last ``reach + 1`` steps to the input that they
                cause in the next step, or in the next `size` steps, ``[size, B, F, ...]``.
            size: the number of steps that are computed at once, at most the shortest delay and one step.

        Raises:
            ValueError: if the spikes in `state` have the wrong shape.
        """
        shape = (reach, *inputs.shape[1:])
        if state is None:
            state = (*cell.initial_state(inputs[0]), inputs.new_zeros(shape))
        *cell_states, history = state
        if history.shape != shape:
            raise ValueError(
                f"state must end in the spikes before the last, {shape}, got {tuple(history.shape)}"
            )
        cell_state = tuple(cell_states)
        # one tensor per step; a saved program may not contain an unbind without results
        spikes = [*(history.to(inputs.dtype).unbind() if reach else ()), cell_state[-1].to(inputs.dtype)]
        outputs = []
        with cached_parametrizations():
            for block in torch.split(inputs, size):
                currents = scale_gradient(feedback(spikes[len(spikes) - reach - 1 :]), self.gradient_scale)
                currents = currents[: len(block)] if size > 1 else currents[None]
                output, cell_state = unroll_layer(cell, block + currents, cell_state, backend=self.backend)
                outputs.append(output)
                spikes += output.unbind()
        last_spikes = spikes[len(spikes) - reach - 1 : -1]
        return torch.cat(outputs), (*cell_state, torch.stack(last_spikes) if last_spikes else history)

    def explain_simulation(self) -> list[str]:
        """A note on the program of :func:`hibana.simulate`; none without sparse synapses on the CPU."""
        synapses: Any = self.recurrent
        if not hasattr(synapses, "row_starts") or not synapses.weight.is_cpu:
            return []
        input_ = torch.zeros(self.features, dtype=torch.float64, device="cpu")
        if synapses.bias is not None:
            input_ = input_ + synapses.bias.detach()
        try:
            grouped_form_of_cell(self.cell, input_)
        except Unsupported as error:
            return [f"hb.simulate: all neurons take each step, because {error}"]
        return ["hb.simulate: passive neurons take no step, with float64 weights or a stimulus"]

    def step(self) -> "RecurrentCell":
        """The cell and its recurrent synapses as one step, cached until one of them is replaced."""
        step: RecurrentCell | None = self.__dict__.get("_step")
        if step is None or step.parts() != (self.cell, self.recurrent, self.gradient_scale):
            step = RecurrentCell(self.cell, self.recurrent, self.gradient_scale)
            self.__dict__["_step"] = step  # not an attribute, which would register cell and synapses twice
        return step


class WrapperCell(cells.Cell):
    """A cell whose step calls that of another cell.

    Args:
        cell: the other cell.
        extra: the names of extra states in front of the states of `cell`.
    """

    cell: cells.Cell
    extra: tuple[str, ...] = ()

    def __init__(self, cell: cells.Cell, extra: Sequence[str] = ()) -> None:
        nn.Module.__init__(self)
        self.cell, self.extra = cell, tuple(extra)
        self._create_cache()

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # the names depend on `cell`
        """The names of the extra states, then of the states of the other cell."""
        return (*self.extra, *self.cell.state_names())


class RecurrentCell(WrapperCell):
    """One step of `cell` on the sum of its input and the output of `recurrent` for its previous spikes."""

    def __init__(self, cell: cells.Cell, recurrent: nn.Module, gradient_scale: float) -> None:
        super().__init__(cell)
        self.recurrent, self.gradient_scale = recurrent, gradient_scale

    def parts(self) -> tuple[cells.Cell, nn.Module, float]:
        """The arguments of the constructor."""
        return self.cell, self.recurrent, self.gradient_scale

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The state after one step with `input_` plus the recurrent product of the previous spikes."""
        if isinstance(self.recurrent, LooksBack):
            raise Unsupported("recurrent synapses with delays read the spikes of several steps")
        feedback = scale_gradient(self.recurrent(state[-1]), self.gradient_scale)
        return self.cell(input_ + feedback, *state)  # type: ignore[no-any-return]

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The initial state of the inner cell."""
        return self.cell.initial_state(input_)

    def rests_at_zero(self) -> bool:
        """Whether all tensors of the inner cell's initial state are zeros."""
        return self.cell.rests_at_zero()


def scale_gradient(current: Tensor, scale: float) -> Tensor:
    """`current`, with its gradient multiplied by `scale`."""
    if scale == 1:
        return current
    if torch.compiler.is_compiling() or torch_internals.jit_trace() is not None or in_forward_mode():
        return current + (current - current.detach()) * (scale - 1)  # NaN for infinite currents
    return with_gradient(current.detach(), current, scale)


def with_gradient(value: Tensor, source: Tensor, factor: Tensor | float) -> Tensor:
    """`value`, whose gradient times `factor` is also added to the gradient of `source`."""
    result: Tensor = _WithGradient.apply(value, source, factor)  # type: ignore[no-untyped-call] # torch's apply
    return result


class _WithGradient(torch.autograd.Function):
    """See :func:`with_gradient`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor, factor: Tensor | float) -> Tensor:
        """Returns `value`; the backward adds its gradient, times `factor`, to the gradient of `source`."""
        ctx.factor = factor
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `value` and `source`; the factor gets none."""
        return grad, grad * ctx.factor, None


def _layer(name: str, cell: Callable[Arguments, cells.Cell]) -> Callable[Arguments, OverTime]:
    """A layer class called `name`, whose instances are ``OverTime(cell(...))``."""

    def __init__(  # noqa: N807 - it becomes the method of the class below
        self: OverTime, *args: Any, backend: str = "auto", **kwargs: Any
    ) -> None:
        OverTime.__init__(self, cell(*args, **kwargs), backend=backend)

    signature = inspect.signature(cell)
    backend_parameter = inspect.signature(OverTime).parameters["backend"]
    body = {
        "__init__": __init__,
        "__module__": __name__,
        "__signature__": signature.replace(parameters=[*signature.parameters.values(), backend_parameter]),
        "__doc__": _layer_docstring(cell),
    }
    return cast(Callable[Arguments, OverTime], type(name, (OverTime,), body))


def _layer_docstring(cell: Callable[Arguments, cells.Cell]) -> str:
    """The docstring of the layer of `cell`: that of the cell without its example, plus `backend`."""
    text = inspect.getdoc(cell) or ""
    text = text.partition(">>> ")[0].rstrip()
    summary, _, body = text.partition("\n")
    over_time = f"Over a sequence, ``[T, batch, ...]``: ``OverTime({cell.__name__}(...))``."
    arguments, source, reference = body.partition("\n\nSource:")
    backend = "    backend: the backend that runs it, as in :func:`hibana.unroll`."
    return f"{summary}\n\n{over_time}\n{arguments}\n{backend}{source}{reference}\n"


IF = _layer("IF", cells.IFCell)
LIF = _layer("LIF", cells.LIFCell)
PLIF = _layer("PLIF", cells.PLIFCell)
CubaLIF = _layer("CubaLIF", cells.CubaLIFCell)
ALIF = _layer("ALIF", cells.ALIFCell)
AdLIF = _layer("AdLIF", cells.AdLIFCell)
RefractoryLIF = _layer("RefractoryLIF", cells.RefractoryLIFCell)
ExactLIF = _layer("ExactLIF", cells.ExactLIFCell)
EIF = _layer("EIF", cells.EIFCell)
QIF = _layer("QIF", cells.QIFCell)
Izhikevich = _layer("Izhikevich", cells.IzhikevichCell)
ResonateAndFire = _layer("ResonateAndFire", cells.ResonateAndFireCell)
SiLIF = _layer("SiLIF", cells.SiLIFCell)
LI = _layer("LI", cells.LICell)
