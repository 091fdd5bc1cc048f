"""Layers of single synapses: sparse linear layers, and linear layers with a delay for each synapse.

Loops go over the synapses of each nonzero input.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.delay import Ring, sum_of_delays
from hibana.network.lowering import Activations, Lowering, times
from hibana.network.nir_node import NirNode
from hibana.network.node import Node, in_order
from hibana.network.onnx_step import OnnxStep
from hibana.network.synapses import by_output, check_connections, connections_of, reordered
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.sparse_linear import DelayedSparseLinear, SparseLinear
from hibana.runtime.kernels import LONG, Pointer, Value
from hibana.spikes.sparse import Connections

__all__ = ["DelayedSparseSynapses", "DelayedSynapses", "SparseSynapses", "add_synapses"]


class SparseSynapses(LayerKind):
    """:class:`hibana.SparseLinear` without delays."""

    name = "sparse"
    types: tuple[type[nn.Module], ...] = (SparseLinear,)
    weighted = has_integers = True

    def check(self, node: Node) -> None:
        """Raises Unsupported unless the arrays of the synapses fit together, and all indices are in range."""
        module, shape = node.module, node.input_shapes[0]
        if len(shape) != 1:
            self.refuse_setting(node, f"a sparse layer on the last dimension of {shape} (flatten first)")
        self.require(node, (module.out_features,), {})
        check_connections(node, module.connections, shape[0], node.size)

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One addition for each synapse."""
        synapses, source = node.module.weight.numel(), node.inputs[0]
        return Operations(synapses, synapses * source.density, source.size * node.size)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights of each output's synapses, ``[synapses of an output, outputs]``, and the bias."""
        synapses = connections_of(node.module)
        assert synapses.weights is not None
        (weights,) = by_output(synapses.targets, node.size, synapses.weights)
        return weights.T, node.module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the delayed input of each synapse, times its weight, summed for each output."""
        synapses = connections_of(node.module)
        assert synapses.weights is not None
        delays = torch.zeros_like(synapses.targets) if synapses.delays is None else synapses.delays.long()
        reach = int(delays.max()) if len(delays) else 0
        places = synapses.sources * (reach + 1) + reach - delays
        places, weights = by_output(synapses.targets, node.size, places, synapses.weights)
        past = step.op("Flatten", [step.past(inputs[0], node.inputs[0].size, 1, reach)], axis=1)
        return step.gathered_sum(past, places, weights, node.module.bias)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add the weights of each nonzero input to the sums of its targets."""
        module, inputs, out = node.module, to.activations[node.inputs[0]], to.temporary(node.size)
        out.clear(node.size)
        synapses = reordered(module.connections, inputs.order)
        add_synapses(to, synapses, inputs, node.size, lambda target: out + target)
        if module.bias is not None:
            to.add_bias(out, module.bias, node.size)
        return Activations(node, in_order(node.size), out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A linear node with the dense weight; with delays, a graph with a dense weight for each delay."""
        module, synapses = node.module, connections_of(node.module)
        assert synapses.weights is not None
        delays = torch.zeros_like(synapses.targets) if synapses.delays is None else synapses.delays
        places = synapses.targets.long() * module.in_features + synapses.sources
        weights = {}
        for delay in sorted({*delays.tolist()}) or [0]:
            dense = module.weight.new_zeros(node.size * module.in_features)
            dense.index_add_(0, places, synapses.weights * (delays == delay))
            weights[delay] = dense.view(node.size, module.in_features)
        return sum_of_delays(weights, module.bias, node.input_shapes[0], dt)


class DelayedSparseSynapses(SparseSynapses):
    """:class:`hibana.SparseLinear` with a delay for each synapse."""

    name = "delayed sparse"
    types: tuple[type[nn.Module], ...] = (DelayedSparseLinear,)
    over_time = True

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add each nonzero input, after its delays, to a ring of the outputs' sums."""
        order, inputs = in_order(node.size), to.activations[node.inputs[0]]
        synapses = reordered(connections_of(node.module), inputs.order)
        ring = Ring(to, node, order, node.module.reach + 1)
        add_synapses(to, synapses, inputs, node.size, ring.place)
        return Activations(node, order, ring.take(node.module.bias))


class DelayedSynapses(DelayedSparseSynapses):
    """:class:`hibana.DelayedLinear`: a synapse with a delay from each input to each output."""

    name = "delayed"
    types = (DelayedLinear,)

    def check(self, node: Node) -> None:
        """Raises Unsupported unless weight and delay have one entry per synapse."""
        outputs = node.module.out_features
        synapses = (outputs, node.input_shapes[0][0])
        self.require(node, (outputs,), {"weight": synapses, "delay": synapses})


def add_synapses(
    to: Lowering,
    synapses: Connections,
    inputs: Activations,
    outputs: int,
    place: Callable[[Value], Pointer],
    name: str = "",
) -> None:
    """Writes loops that add the weights of each nonzero input to the sums that they reach.

    Args:
        to: the code under construction.
        synapses: a row of synapses for each input, in the order of memory.
        inputs: the inputs at the current step.
        outputs: the number of target neurons.
        place: from the index ``delay * outputs + target`` to the address of the sum.
        name: the prefix of the names of the arrays in C.
    """
    assert synapses.weights is not None
    indices, weights = synapses.targets.long(), synapses.weights.detach()
    if synapses.delays is not None:
        indices = indices + synapses.delays.long() * outputs
    if synapses.size == 0:  # C has no arrays without elements: one synapse, which no row contains
        indices, weights = indices.new_zeros(1), weights.new_zeros(1)
    starts, rows = to.indices(synapses.row_starts, f"{name}starts"), to.constant(weights, f"{name}w")
    targets = to.indices(indices, f"{name}{'targets' if synapses.delays is None else 'places'}")
    with to.each_nonzero(inputs) as (i, x):
        end = starts[i + 1].to(LONG).named("end")
        with to.code.loop(starts[i].to(LONG), end, name="synapse") as synapse:
            target = place(targets[synapse].to(LONG))
            target.store(target.load() + times(rows[synapse], x))
