"""Traces the step of a cell: the graph of its pointwise operations, forward and backward.

The cell's ``forward`` and its gradient run on small tensors while their ATen operations are recorded
(:mod:`hibana.compiler.graph.recorder`). The recorded graph is converted to a :class:`Step`
(:mod:`hibana.compiler.graph.reading`).
"""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.graph.dependencies import Dependencies
from hibana.compiler.graph.objects import traced_kind
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.reading import Reading
from hibana.compiler.graph.recorder import joint_graph
from hibana.compiler.graph.step import Step
from hibana.compiler.tensors import shape_class, tensors_of


def trace(
    cell: Cell,
    shape: torch.Size,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    draws: bool = False,
    sparse: bool = False,
) -> Step:
    """The step of `cell` on inputs of `shape`, as PyTorch computes it on `device`.

    The step runs on two small shapes. If its graph is the same for both, it is the graph for all sizes of
    the dimensions that no tensor of the cell has. Otherwise the step runs on `shape`, on the meta device.

    Args:
        cell: the cell.
        shape: the shape of one step of the input, ``[batch, ...]``.
        dtype: the dtype of the numbers in the step.
        device: ``"cpu"`` or ``"cuda"``.
        draws: whether the step may draw random numbers.
        sparse: whether the step may multiply by sparse matrices.

    Raises:
        Unsupported: if the step has other operations than those of the table and matrix products, if it
            changes the shape, or if its graph is not the same at each call.
    """
    with ThreadPoolExecutor(1) as executor:  # a new thread has no modes, no autocast, and records gradients
        step = executor.submit(_trace, cell, shape, dtype, device).result()
    if step.draws and not draws:
        raise Unsupported(f"the step of {type(cell).__name__} draws random numbers")
    if step.sparse and not sparse:
        raise Unsupported(f"the step of {type(cell).__name__} has sparse synapses, which have no form here")
    return step


def _trace(cell: Cell, shape: torch.Size, dtype: torch.dtype, device: str) -> Step:
    """The step of `cell`, as :func:`trace`; must run in a thread without torch modes."""
    tensors = tensors_of(cell)
    # two sizes for each dimension that no tensor of the cell determines
    small_shapes = [torch.Size(size if n < 0 else n for n in shape_class(tensors, shape)) for size in (2, 3)]
    copy = _copy(cell, tensors)
    graphs, keys, reads_size = [], [], False
    for small_shape in small_shapes:
        graph, graph_reads_size = joint_graph(copy, tensors, small_shape, dtype, "cpu")
        graphs.append(graph)
        reads_size = reads_size or graph_reads_size
        dependencies = Dependencies(copy)
        keys.append((dependencies.key, dependencies.refusal))
    if keys[0] != keys[1]:
        raise Unsupported("the step changes what it holds besides its states, as a counter does")
    if not reads_size and str(graphs[0]) == str(graphs[1]):
        step = Reading(cell, tensors, graphs[0], small_shapes[0], dtype, device).step()
        return replace(step, any_size=True)
    if str(graphs[0]) != str(joint_graph(copy, tensors, small_shapes[0], dtype, "cpu")[0]):
        raise Unsupported("the step is another one at each call")
    graph, _ = joint_graph(copy, tensors, shape, dtype, "meta")
    return Reading(cell, tensors, graph, shape, dtype, device).step()


def _copy(cell: Cell, tensors: dict[str, Tensor]) -> Cell:
    """A copy of `cell` with the same tensors, to trace without changing attributes of `cell`.

    In the copy, layers of hibana that choose a kernel by their input are the plain layers of torch.
    """
    try:
        shared = [*tensors.values(), *Dependencies(cell).shared_with_copy()]
        copy = deepcopy(cell, {id(value): value for value in shared})
    except Exception:  # an attribute of the user's that cannot be copied: the trace runs on the cell itself
        return cell
    for module in copy.modules():
        if (kind := traced_kind(module)) is not type(module):
            module.__class__ = kind
    return copy
