"""Checks of the arguments of a call, and the warning where only the reference loop runs it."""

import warnings

from torch import Tensor

from hibana.cells import Cell
from hibana.cells.base import check_cell
from hibana.compiler import reference


def check_inputs(cell: Cell, inputs: Tensor) -> None:
    """Raises ``TypeError`` or ``ValueError`` if `inputs` are no sequence, or `cell` is none."""
    check_cell(cell)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [T, ...], got {type(inputs).__name__}")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point, got {inputs.dtype}; use inputs.float()")
    if inputs.ndim == 0:
        raise ValueError("inputs must have time first, [T, ...], got a tensor without dimensions")
    if inputs.shape[0] == 0:
        raise ValueError(f"inputs must have at least one time step, got shape {tuple(inputs.shape)}")


def check_batch(inputs: Tensor) -> None:
    """Raises ``ValueError`` for inputs of one dimension: a layer over time needs ``[T, batch, ...]``."""
    if isinstance(inputs, Tensor) and inputs.ndim == 1:
        raise ValueError(
            f"inputs of a layer must be [T, batch, ...], time first, got shape {tuple(inputs.shape)}; "
            "a single neuron over time is [T, 1]"
        )


def checked_state(cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`state` to go on from, in the dtype that it is carried in.

    Raises:
        TypeError: if it holds something else than tensors of numbers.
        ValueError: if one is missing, or has another shape or device than a step of `inputs`.
    """
    names = cell._hibana.states
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
    return tuple(value.to(dtype).resolve_neg() for value in state)


class SlowPathWarning(RuntimeWarning):
    """A call that runs slower than it could, and why.

    Either the reference loop runs it, step by step, since no compiled backend serves it; or the network has
    layers of ``torch.nn`` that :func:`hibana.optimize` would change.
    """


_SAID: set[str] = set()


def said_once(cell: str, reason: str) -> None:
    """Warns, once for each `reason`, that the reference loop runs cells of the class called `cell`."""
    text = f"{cell} is run by the reference loop, step by step and many times slower, because {reason}"
    warn_once(text, text)


def warn_once(key: str, text: str) -> None:
    """Warns of `text`, unless a warning of this `key` was given before."""
    if key not in _SAID:
        warnings.warn(text, SlowPathWarning, stacklevel=3)
        _SAID.add(key)  # not before: who makes warnings errors has each one
