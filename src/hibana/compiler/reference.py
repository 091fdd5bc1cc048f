"""The reference loop: the specification of every backend, and the fallback where none serves a cell."""

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.base import check_states


def unroll(cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`cell` run over `inputs`, ``[T, ...]``, from `state`: what it emitted, and the state it ended in.

    State is carried in float32 where the input is of half precision; outputs take the input's dtype. Whoever
    calls it has computed what parametrisations do, once for all steps.
    """
    emitted = []
    for input_ in inputs.unbind():
        state = check_states(cell, cell(input_.to(carried(inputs.dtype)), *state))
        emitted.append(state[-1].to(inputs.dtype))
    return torch.stack(emitted), state


def carried(dtype: torch.dtype) -> torch.dtype:
    """The dtype that state is carried in for an input of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
