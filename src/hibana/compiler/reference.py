"""The reference loop: the specification of every backend, and the fallback for cells that none can
compile.
"""

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.compiler.draws import Drawing


def unroll(
    cell: Cell, inputs: Tensor, state: tuple[Tensor, ...], drawing: Drawing | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The outputs of `cell` over `inputs`, and its last state.

    Callers must evaluate parametrizations first.

    Args:
        cell: the cell.
        inputs: ``[T, ...]``. For half precision the states are float32; outputs have the inputs' dtype.
        state: the initial state.
        drawing: the source of the step's random numbers, from its current step on; None for a new source. A
            graph of Dynamo's has PyTorch's own random numbers instead.
    """
    outputs = []
    is_traced = torch.compiler.is_dynamo_compiling()
    if not is_traced:
        drawing = drawing or Drawing(type(cell).__name__)
    for input_ in inputs.unbind():
        step_input = input_.to(state_dtype(inputs.dtype))
        if is_traced or drawing is None:
            state = check_states(cell, cell(step_input, *state))
        else:
            with drawing:
                next_state = cell(step_input, *state)
            drawing.step += 1
            state = check_states(cell, next_state)
        outputs.append(state[-1].to(inputs.dtype))
    return torch.stack(outputs), state


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the states for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
