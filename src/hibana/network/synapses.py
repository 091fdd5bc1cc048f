"""Sparse synapses in the graph of a network: their order in memory, and tables of them."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hibana.compiler.graph.ops import Unsupported
from hibana.network.node import Node, in_order
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.sparse import Connections

__all__ = ["by_output", "check_connections", "connections_of", "reordered"]

_MAX_SYNAPSES = 1 << 31
"""Indices of synapses have 31 bits."""


def check_connections(node: Node, synapses: Connections, inputs: int, outputs: int) -> None:
    """Checks that loops over the synapses of `node` stay within their arrays.

    Raises:
        Unsupported: naming the layer, if an array has a wrong size, or an index is out of range.
    """
    row_starts, targets, delays, weights = synapses
    assert weights is not None
    try:
        SynapseIndex.check(row_starts, targets, delays, inputs, outputs)
    except ValueError as error:
        raise Unsupported(f"layer {node.name!r}: {error}") from error
    if targets.numel() != weights.numel() or weights.numel() >= _MAX_SYNAPSES:
        raise Unsupported(
            f"layer {node.name!r}: {weights.numel():,} weights of {targets.numel():,} synapses must be one "
            f"for each, and fewer than {_MAX_SYNAPSES:,}"
        )


def connections_of(layer: SparseLinear | DelayedLinear) -> Connections:
    """The synapses of `layer`; a delayed linear layer has one from each input to each output."""
    if isinstance(layer, SparseLinear):
        row_starts, targets, delays, weights = layer.connections
    else:
        outputs, inputs = layer.weight.shape
        row_starts, targets = in_order(inputs + 1) * outputs, in_order(outputs).repeat(inputs)
        delays, weights = layer.steps.T.flatten(), layer.weight.T.flatten()
    assert weights is not None
    return Connections(row_starts, targets, delays, weights.detach())


def reordered(synapses: Connections, order: Tensor, target_order: Tensor | None = None) -> Connections:
    """The synapses between neurons in another order.

    Args:
        synapses: the synapses between neurons in PyTorch's order.
        order: PyTorch's index of the source neuron at each place in memory.
        target_order: PyTorch's index of the target neuron at each place; None if targets keep their order.
    """
    row_starts, targets, delays, weights = synapses
    if target_order is not None:
        targets = target_order.argsort()[targets.long()].to(torch.int32)
    if not torch.equal(order, in_order(len(order))):
        lengths = row_starts.diff()[order]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = (row_starts[order] - starts[:-1]).repeat_interleave(lengths)
        indices, row_starts = in_order(len(targets)) + shift, starts
        targets = targets[indices]
        delays, weights = (None if values is None else values[indices] for values in (delays, weights))
    return Connections(row_starts, targets, delays, weights)


def by_output(targets: Tensor, outputs: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Each of `values`, one per synapse, as ``[outputs, most synapses of an output]``; the rest is 0.

    `targets` are the outputs of the synapses.
    """
    order, counts = targets.argsort(stable=True), torch.bincount(targets.long(), minlength=outputs).tolist()
    tables = (pad_sequence(list(torch.split(numbers[order], counts)), batch_first=True) for numbers in values)
    return tuple(table if table.numel() else table.new_zeros(outputs, 1) for table in tables)
