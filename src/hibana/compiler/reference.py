"""The reference loop: the specification of every backend, and the fallback where none serves a cell."""

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.compiler.draws import Drawing


def unroll(
    cell: Cell, inputs: Tensor, state: tuple[Tensor, ...], drawing: Drawing | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`cell` run over `inputs`, ``[T, ...]``, from `state`: what it emitted, and the state it ended in.

    State is carried in float32 where the input is of half precision; outputs take the input's dtype. What the
    step draws comes from `drawing`, from its current step on, or from a new one; a graph of Dynamo's has
    PyTorch's own draws. Whoever calls it has computed what parametrisations do, once for all steps.
    """
    emitted = []
    traced = torch.compiler.is_dynamo_compiling()
    if not traced:
        drawing = drawing or Drawing(type(cell).__name__)
    for input_ in inputs.unbind():
        given = input_.to(state_dtype(inputs.dtype))
        if traced or drawing is None:
            state = check_states(cell, cell(given, *state))
        else:
            with drawing:
                after = cell(given, *state)
            drawing.step += 1
            state = check_states(cell, after)
        emitted.append(state[-1].to(inputs.dtype))
    return torch.stack(emitted), state


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that state is carried in for an input of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
