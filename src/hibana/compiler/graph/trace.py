"""Traces a step to the graph of its pointwise operations, forward and backward.

The cell's ``forward`` and its gradient run on small tensors while their ATen operations are recorded
(:mod:`hibana.compiler.graph.recorder`) and read as a :class:`Step` (:mod:`hibana.compiler.graph.reading`).
"""

import random
import sys
from collections.abc import Hashable
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
    cell: Cell, shape: torch.Size, dtype: torch.dtype, device: str = "cpu", *, draws: bool = False
) -> Step:
    """The graph of one step of `cell` on inputs of `shape`, as PyTorch computes it on `device`.

    It may draw random numbers if `draws`.

    The step runs on two small shapes. If it is the same on both, the sizes of dimensions that no tensor of
    the cell has do not matter; else it runs once on `shape` itself, on the meta device.

    Raises:
        Unsupported: if the step is not pointwise in operations known here, with the reason.
    """
    with ThreadPoolExecutor(1) as clean:  # a thread has no modes, no autocast, and records gradients
        step = clean.submit(_trace, cell, shape, dtype, device).result()
    if step.draws and not draws:
        raise Unsupported(f"the step of {type(cell).__name__} draws random numbers")
    return step


def _trace(cell: Cell, shape: torch.Size, dtype: torch.dtype, device: str) -> Step:
    tensors = tensors_of(cell)
    small = [_of_any_size(tensors, shape, size) for size in (2, 3)]
    alone = _copied(cell, tensors)
    graphs, looked, seen = [], False, []
    for one in small:
        drawn = _random_state()
        graph, sizes = joint_graph(alone, tensors, one, dtype, "cpu")
        graphs.append(graph)
        looked = looked or sizes
        walk = Dependencies(alone)
        seen.append(((walk.key, walk.refusal), _random_state() == drawn))
    if seen[0][0] != seen[1][0]:
        raise Unsupported("the step changes what it holds besides its states, as a counter does")
    if not any(same for _, same in seen):
        raise Unsupported("the step draws random numbers of Python's or NumPy's")
    if not looked and str(graphs[0]) == str(graphs[1]):
        return replace(Reading(cell, tensors, graphs[0], small[0], dtype, device).step(), any_size=True)
    if str(graphs[0]) != str(joint_graph(alone, tensors, small[0], dtype, "cpu")[0]):
        raise Unsupported("the step is another one at each call")
    graph, _ = joint_graph(alone, tensors, shape, dtype, "meta")
    return Reading(cell, tensors, graph, shape, dtype, device).step()


def _copied(cell: Cell, tensors: dict[str, Tensor]) -> Cell:
    """A copy of `cell` with the same tensors, so that a step that changes its cell changes a copy.

    Layers that choose a kernel by their input are those of torch in it.
    """
    try:
        same = [*tensors.values(), *Dependencies(cell).shared_with_copy()]
        copied = deepcopy(cell, {id(value): value for value in same})
    except Exception:  # what can't be copied, for whatever reason of its own, is read where it is
        return cell
    for module in copied.modules():
        if (kind := traced_kind(module)) is not type(module):
            module.__class__ = kind
    return copied


def _of_any_size(tensors: dict[str, Tensor], shape: torch.Size, size: int) -> torch.Size:
    """`shape` with each dimension replaced by `size` that no tensor of the cell has a say in."""
    return torch.Size(size if n < 0 else n for n in shape_class(tensors, shape))


def _random_state() -> Hashable:
    """The state of the global random generators of Python and NumPy."""
    # NumPy loads them when they are first touched: until then nobody has drawn any.
    numbers = sys.modules.get("numpy.random")
    drawn = numbers.get_state()[1:3] if numbers else ((), 0)
    return random.getstate(), tuple(drawn[0]), drawn[1]
