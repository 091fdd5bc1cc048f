"""How time is run: :func:`unroll` checks its arguments once and picks a backend."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.loop import compiled, reference
from hibana.loop.explain import explain
from hibana.loop.words import Unsupported

__all__ = ["emitted", "explain", "record", "unroll"]

State = tuple[Tensor, ...]
_Runner = Callable[[Tensor, State | None], tuple[Tensor, Sequence[Tensor]]]
BACKENDS = ("auto", "reference", "cpu")


def unroll(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, State]:
    """Runs `cell` over a sequence.

    Args:
        cell: one step, ``forward(input_, *state) -> state``.
        inputs: ``[T, ...]``, time first, floating point.
        state: where to go on from, one tensor of shape ``inputs.shape[1:]`` for each state of the
            cell; at rest if ``None``.
        backend: ``"auto"`` picks the fastest that serves this cell; a backend asked for by name either
            serves or raises.

    Returns:
        What the cell emitted, ``[T, ...]``, and the state it ended in.

    Raises:
        TypeError: if `inputs` is not a floating-point tensor, or `cell` not a cell.
        ValueError: if a shape, a device or the backend's name is wrong.

    >>> import torch, hibana as hb
    >>> spikes, (v, s) = hb.unroll(hb.IFCell(), torch.full([4, 1], 0.4))
    >>> spikes.flatten()
    tensor([0., 0., 1., 0.])
    """
    outputs, last = emitted(cell, inputs, state, backend=backend)
    if len(last) < len(cell.states):
        last = (*last, outputs[-1].clone())  # a view would keep, and change with, the whole sequence
    return outputs, tuple(last)


def emitted(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Sequence[Tensor]]:
    """As :func:`unroll`, but the last of the states may be missing: it is the last of what was emitted."""
    _check_inputs(cell, inputs)
    given = inputs.dtype
    dtype = reference.carried(given)
    if state is not None:
        state = _checked_state(cell, inputs, state)
    served = _serving(cell, inputs, dtype, backend)
    if state is None and (served is None or not cell.rests_at_zero()):
        state = cell.initial_state(_one_step(inputs))
    if served is None:
        assert state is not None
        return reference.unroll(cell, inputs, state)
    if given == dtype:
        return served(inputs, state)
    outputs, last = served(inputs.to(dtype), state)
    return outputs.to(given), (*last, outputs[-1].clone())


def _serving(cell: Cell, inputs: Tensor, dtype: torch.dtype, backend: str) -> _Runner | None:
    """What runs `cell` over `inputs`; None is the reference loop.

    Raises:
        Unsupported: if a backend was asked for by name that can't serve.
    """
    if backend == "reference":
        return None
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    named = backend != "auto"
    device = inputs.device.type
    reason = ""
    if device != "cpu":
        reason = f"backend {backend!r} can't serve inputs on {device}"
    elif _is_traced(inputs):
        from hibana.loop import operator

        if operator.serves(cell.key, dtype, inputs.ndim - 1):
            return partial(operator.unroll, cell)
        reason = f"{type(cell).__name__} can't be compiled"
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        reason = f"backend {backend!r} can't serve a transform of torch.func"
    if reason:
        if named:
            raise Unsupported(reason)
        return None
    try:
        return partial(compiled.run, compiled.program(cell, "cpu", inputs.shape[1:], dtype), cell)
    except Unsupported:
        if named:
            raise
        return None


def _is_traced(inputs: Tensor) -> bool:
    """Whether a call on `inputs` is being written down rather than run."""
    plain = type(inputs) in (Tensor, torch.nn.Parameter)
    return torch.compiler.is_compiling() or not plain or torch._C._len_torch_dispatch_stack() > 0


def record(cell: Cell, inputs: Tensor) -> dict[str, Tensor]:
    """Every state of `cell` at every step of `inputs`, by name, each ``[T, ...]``: for looking at.

    >>> import torch, hibana as hb
    >>> hb.record(hb.IFCell(), torch.full([3, 1], 0.6))["v"].flatten()
    tensor([0.6000, 1.2000, 0.6000])
    """
    _check_inputs(cell, inputs)
    names = cell.state_names()
    state = cell.initial_state(_one_step(inputs))
    steps = []
    for input_ in inputs:
        _, state = reference.unroll(cell, input_[None], state)
        steps.append(state)
    return {name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}


def _one_step(inputs: Tensor) -> Tensor:
    return inputs[0].detach().to(reference.carried(inputs.dtype))


def _check_inputs(cell: Cell, inputs: Tensor) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {type(cell).__name__}")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [T, ...], got {type(inputs).__name__}")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point, got {inputs.dtype}; use inputs.float()")
    if inputs.ndim == 0:
        raise ValueError("inputs must have time first, [T, ...], got a tensor without dimensions")
    if inputs.shape[0] == 0:
        raise ValueError(f"inputs must have at least one time step, got shape {tuple(inputs.shape)}")


def _checked_state(cell: Cell, inputs: Tensor, state: State) -> State:
    names = cell.states
    if not isinstance(state, tuple | list) or len(state) != len(names):
        got = f"{len(state)} tensors" if isinstance(state, tuple | list) else type(state).__name__
        raise ValueError(
            f"state must be the tensors ({', '.join(names)}) of {type(cell).__name__}, got {got}"
        )
    shape, dtype = inputs.shape[1:], reference.carried(inputs.dtype)
    for name, value in zip(names, state, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"state {name} must be a tensor, got {type(value).__name__}")
        if value.shape != shape:
            raise ValueError(
                f"state {name} must have the shape of one step of inputs, {tuple(shape)}, "
                f"got {tuple(value.shape)}"
            )
        if value.device != inputs.device:
            raise ValueError(f"state {name} must be on {inputs.device} like inputs, got {value.device}")
        if not value.is_floating_point():
            raise TypeError(f"state {name} must be floating point, got {value.dtype}")
    return tuple(value.to(dtype) for value in state)
