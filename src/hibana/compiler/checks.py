"""Checks of the arguments of a call, and the warning about calls that only the reference loop can run."""

import inspect
import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.cells.base import BuiltIn, check_cell
from hibana.compiler import reference
from hibana.compiler.tensors import broadcasts


def check_inputs(cell: Cell, inputs: Tensor) -> None:
    """Raises ``TypeError`` or ``ValueError`` if `inputs` is not a sequence, or `cell` not a cell."""
    check_cell(cell)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [T, ...], got {type(inputs).__name__}")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point, got {inputs.dtype}; use inputs.float()")
    if inputs.ndim == 0:
        raise ValueError("inputs must have time first, [T, ...], got a tensor without dimensions")
    if inputs.shape[0] == 0:
        raise ValueError(f"inputs must have at least one time step, got shape {tuple(inputs.shape)}")


def check_module(module: object, name: str = "module") -> None:
    """Raises ``TypeError`` if the argument `name` of a function is not a module."""
    if isinstance(module, type):
        raise TypeError(f"{name} must be a torch.nn.Module, got the class {module.__name__}: call it")
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, such as hb.LIF(), got {module!r:.100}")


def check_values(cell: Cell, shape: torch.Size) -> None:
    """Raises ``ValueError`` if a value of a cell of hibana does not broadcast to one step, of `shape`."""
    if not isinstance(cell, BuiltIn):
        return
    names = {range_.parameter_name: name for name, range_ in cell._ranges().items()}
    expected = f"one number or broadcast to one step of the input, {list(shape)}"
    for name, value in (*cell._parameters.items(), *cell._buffers.items()):
        if value is not None and not broadcasts(value.shape, shape):
            raise ValueError(
                f"{names.get(name, name)} of {type(cell).__name__} must be {expected}, "
                f"got shape {list(value.shape)}"
            )


def check_batch(inputs: Tensor) -> None:
    """Raises ``ValueError`` for inputs of one dimension; a layer takes ``[T, batch, ...]``."""
    if isinstance(inputs, Tensor) and inputs.ndim == 1:
        raise ValueError(
            f"inputs of a layer must be [T, batch, ...], time first, got shape {tuple(inputs.shape)}; "
            "a single neuron over time is [T, 1]"
        )


def checked_state(cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The initial `state` in the dtype of states.

    Raises:
        TypeError: if it contains anything but floating-point tensors.
        ValueError: if a tensor is missing, or its shape or device is not that of a step of `inputs`.
    """
    names = cell._hibana.states
    if not isinstance(state, tuple | list) or len(state) != len(names):
        description = f"{len(state)} tensors" if isinstance(state, tuple | list) else type(state).__name__
        raise ValueError(
            f"state must be the tensors ({', '.join(names)}) of {type(cell).__name__}, got {description}"
        )
    shape, dtype = inputs.shape[1:], reference.state_dtype(inputs.dtype)
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
    """A call runs in the reference loop, step by step, because no backend can compile it."""


_WARNED: set[str] = set()
"""The texts of earlier warnings."""

_FIXES = {
    "draws random numbers": "draw them by torch functions such as torch.rand_like",
    "changes the shape": "put layers that mix neurons outside of the cell, or into hb.Recurrent",
    "sum over neurons": "put layers that mix neurons outside of the cell, or into hb.Recurrent",
    "multiplies neurons with one another": "put layers that mix neurons outside of the cell",
    "changes what it holds": "return the value as one of the states",
    "no step computes": "multiply by a state or by the input",
    "has several results": "use an operation for each result",
    "computes in": "keep the dtype of the input, by .to(input_.dtype)",
    "not a pointwise operation": "use element-wise operations of torch",
    "can change unseen": "make it an attribute of the cell, or a constant of its module",
}
"""The change of a step that avoids the reference loop, by a part of the reason."""


def warn_slow(cell: Cell, reason: str, name: str = "") -> None:
    """Warns, once per `reason`, that the reference loop runs `cell`, or all cells that `name` describes.

    The warning points to the user's own step, or to the user's call of one of hibana's cells.
    """
    fix = "" if name else next((fix for part, fix in _FIXES.items() if part in reason), _FIX)
    name = name or type(cell).__name__
    text = f"{name} is run by the reference loop, step by step and many times slower, because {reason}"
    if text not in _WARNED:
        file, line = _step_of_user(cell) or _call_of_user()
        warnings.warn_explicit(f"{text}; to fix it, {fix}" if fix else text, SlowPathWarning, file, line)
        _WARNED.add(text)  # after the warning, so that every call raises if warnings are errors


_FIX = 'write it in element-wise operations of torch, or accept the loop by backend="reference"'
_PACKAGES = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, Path(__file__).parent))
"""The folders of torch and hibana."""


def _step_of_user(cell: Cell) -> tuple[str, int] | None:
    """File and line of the first step in `cell` that the user wrote, or None."""
    for module in cell.modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if isinstance(module, Cell) and code is not None and not _is_library(code.co_filename):
            return code.co_filename, code.co_firstlineno
    return None


def _call_of_user() -> tuple[str, int]:
    """File and line of the innermost call outside of hibana and torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return ("<unknown>", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def _is_library(file: str) -> bool:
    """Whether `file` is part of hibana or torch."""
    return file.startswith(_PACKAGES)
