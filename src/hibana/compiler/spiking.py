"""Whether a cell emits spikes, as derived from its traced step."""

import torch

from hibana.cells import Cell
from hibana.compiler.analysis.binary import binary_states
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import fitting_shape, tensors_of


def emits_spikes(cell: Cell) -> bool:
    """Whether `cell` emits only zeros and ones, by :attr:`Cell.emits_spikes` or else by its step.

    Raises:
        Unsupported: if the step can't be traced.

    >>> import hibana as hb
    >>> emits_spikes(hb.IFCell()), emits_spikes(hb.LICell())
    (True, False)
    """
    if cell.emits_spikes is not None:
        return cell.emits_spikes
    try:
        results = dependencies_of(cell).cache
    except Unsupported:
        results = {}  # the cell can change unseen
    if emits_spikes not in results:
        results[emits_spikes] = _is_last_state_binary(cell)
    return bool(results[emits_spikes])


def _is_last_state_binary(cell: Cell) -> bool:
    """Whether the last state of `cell` is 0 or 1 at every step."""
    shape = torch.Size(fitting_shape(cell))
    dtypes = [tensor.dtype for tensor in tensors_of(cell).values() if tensor.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    try:
        step = trace(cell, shape, dtype, draws=True, sparse=True)
    except Unsupported as error:
        raise Unsupported(
            f"whether {type(cell).__name__} emits spikes can't be read from its step ({error}); "
            f"set emits_spikes = True, or False, in the class"
        ) from error
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        states = cell.initial_state(torch.zeros(shape, dtype=dtype, device="cpu"))
    return len(states) - 1 in binary_states(step, states)
