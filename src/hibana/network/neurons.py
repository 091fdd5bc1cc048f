"""A layer of neurons for code that runs without PyTorch: its traced step, and its tensors in memory order.

How the layer is written in a target language does not belong here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.analysis.binary import States, binary_states
from hibana.compiler.c.source import Product, split_products
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.network.node import Node, channels_last
from hibana.network.synapses import check_connections, reordered
from hibana.nn.layers import OverTime, Recurrent, RecurrentCell
from hibana.nn.window import LooksBack
from hibana.spikes.sparse import Connections

__all__ = ["NeuronLayer", "sparse_matrix", "trace_layer", "trace_step"]

SPARSE_BELOW = 1 / 8
"""Fraction of weights other than zero below which a matrix of integers is stored as synapses.

A synapse takes three bytes of a C program, and a weight of a dense matrix one byte; a dense row is added in
vectors of eight numbers.
"""


@dataclass
class NeuronLayer:
    """A traced layer of neurons."""

    node: Node
    step: Step
    initial_state: tuple[Tensor, ...]
    """One tensor ``[neurons]`` per state."""
    parameters: tuple[Tensor, ...]
    """Each ``[1]``, ``[channels]`` or ``[neurons]``."""
    matrices: tuple[Tensor | Connections, ...]
    """Each ``[from, to]``, or the synapses of a sparse matrix."""
    binary_states: States
    """The states that are 0 or 1 at every step."""
    products: list[Product]
    """Products of states of the previous step with matrices."""
    stores: Stores
    """The values that a step computes."""

    @property
    def emits_spikes(self) -> bool:
        """Whether the output is 0 or 1 at every step."""
        return len(self.step.states) - 1 in self.binary_states

    def shared_numbers(self, stores: Stores) -> dict[Leaf, float]:
        """The number of each leaf of `stores` that all neurons share."""
        constants, parameters = self.step.constants, self.parameters
        shared = (leaf for leaf, value in leaves(stores).items() if value.is_scalar)
        return {x: float((constants if x.kind == "constant" else parameters)[x.index]) for x in shared}

    def matrix(self, index: int, transposed: bool) -> Tensor | Connections:
        """Matrix `index`, ``[from, to]``, or its transpose, or the synapses of a sparse matrix."""
        matrix = self.matrices[index]
        # a sparse matrix is never transposed: only the backward pass of a step does that
        return matrix.T.contiguous() if transposed and isinstance(matrix, Tensor) else matrix


def trace_step(node: Node, dtype: torch.dtype) -> tuple[Step, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Traces the neurons of `node` on one sample.

    Returns:
        The step, its initial states ``[1, *sample]``, and the tensors that its prologue returns.

    Raises:
        Unsupported: naming the layer, if its step cannot be traced.
    """
    module = node.module
    assert isinstance(module, OverTime | Recurrent)
    cell = module.cell
    if isinstance(module, Recurrent) and not isinstance(module.recurrent, LooksBack):
        cell = RecurrentCell(cell, module.recurrent, 1.0)  # there is no gradient to scale
    example = torch.zeros(1, *node.shape, dtype=dtype, device="cpu")
    try:
        step = trace(cell, example.shape, dtype, sparse=True)
    except Unsupported as error:
        raise Unsupported(f"layer {node.name!r}: {error}") from error
    with torch.no_grad():
        initial_state = tuple(state.detach().expand_as(example) for state in cell.initial_state(example))
        return step, initial_state, step.prologue(*tensors_of(cell).values())


def trace_layer(node: Node, order: Tensor, dtype: torch.dtype) -> NeuronLayer:
    """Traces the neurons of `node` and puts their tensors in memory order.

    Args:
        node: a layer of neurons.
        order: PyTorch's index of the neuron at each place in memory, ``[neurons]``.
        dtype: the type of all floating-point tensors.

    Raises:
        Unsupported: naming the layer, if its step cannot be traced.
    """
    step, states, tensors = trace_step(node, dtype)
    sample_rank = len(node.shape)
    is_channels_last = sample_rank > 1 and torch.equal(order, channels_last(node.shape))
    channels = node.shape[0] if is_channels_last else 0

    def in_order(values: Tensor) -> Tensor:
        """`values`, broadcast to one number per neuron, in memory order."""
        return values.detach().to(dtype).expand(1, *node.shape).flatten()[order]

    def parameter(values: Tensor) -> Tensor:
        """`values` as one number if all neurons share it, as one per channel, or as one per neuron."""
        has_channels = values.ndim >= sample_rank  # else the tensor broadcasts over the last dimensions
        per_channel = has_channels and values.numel() == channels == values.shape[-sample_rank]
        return values.detach().to(dtype).flatten() if values.numel() == 1 or per_channel else in_order(values)

    def matrix(index: int) -> Tensor | Connections:
        """Matrix `index` of the step for neurons in memory order."""
        if index in step.sparse:
            return reordered(sparse_matrix(node, step, tensors, index), order, order)
        values = tensors[step.parameters + index].detach()
        if values.numel() != node.size**2:
            raise Unsupported(
                f"layer {node.name!r}: its step multiplies samples of shape {node.shape} by a matrix that is "
                f"{list(values.shape)} and not [{node.size}, {node.size}]"
            )
        values = values.reshape(node.size, -1)[order][:, order]
        sources, targets = values.nonzero(as_tuple=True)
        is_integer = bool((values == values.round()).all())
        if is_integer and len(sources) < SPARSE_BELOW * values.numel():
            weights = values[sources, targets]
            return Connections.from_pairs(sources, targets, (node.size, node.size), None, weights)
        return values

    initial_state = tuple(in_order(state) for state in states)
    parameters = tuple(parameter(values) for values in tensors[: step.parameters])
    matrices = tuple(map(matrix, range(step.matrices)))
    binary = binary_states(step, initial_state)
    products, stores = split_products(step, binary)
    return NeuronLayer(node, step, initial_state, parameters, matrices, binary, products, stores)


def sparse_matrix(node: Node, step: Step, tensors: Sequence[Tensor], index: int) -> Connections:
    """The synapses of the sparse matrix `index` in the `step` of `node`, in PyTorch's order of neurons.

    `tensors` are those that the step's prologue returns.

    Raises:
        Unsupported: naming the layer, if an index is out of range.
    """
    matrices = tensors[step.parameters :]
    row_starts, targets = step.index_of(matrices, index)
    synapses = Connections(row_starts, targets, None, matrices[index].detach())
    check_connections(node, synapses, node.size, node.size)
    return synapses
