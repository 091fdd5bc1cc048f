"""Sparse linear layers: loops over the stored synapses of each nonzero input."""

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.delay import Ring, sum_of_delays
from hibana.network.lowering import Activations, Lowering, in_order
from hibana.network.nir_node import NirNode
from hibana.network.onnx_export import OnnxStep
from hibana.network.synapses import (
    add_synapses,
    check_connections,
    longest_delay,
    padded,
    reordered,
    synapses_of_outputs,
)
from hibana.nn.sparse_linear import DelayedSparseLinear, SparseLinear

__all__ = ["DelayedSparseSynapses", "SparseSynapses"]


class SparseSynapses(LayerKind):
    """:class:`hibana.SparseLinear` without delays."""

    name = "sparse"
    types = (SparseLinear,)
    weighted = True

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
        module = node.module
        table = synapses_of_outputs(module.targets, node.size)
        return padded(module.weight.detach(), table).T, module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the delayed input of each synapse, times its weight, summed for each output."""
        module, features = node.module, node.inputs[0].size
        reach = longest_delay(module.connections)
        places = module.sources * (reach + 1) + reach
        if module.delays is not None:
            places = places - module.delays.long()
        past = step.op("Flatten", [step.past(inputs[0], features, 1, reach)], axis=1)
        table = synapses_of_outputs(module.targets, node.size)
        weights = padded(module.weight.detach(), table)
        return step.gathered_sum(past, padded(places, table), weights, module.bias)

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
        module = node.module
        delays = torch.zeros_like(module.targets) if module.delays is None else module.delays
        steps = delays.unique().tolist() or [0]
        places = module.targets.long() * module.in_features + module.sources
        weights = {}
        for delay in steps:
            dense = module.weight.new_zeros(node.size * module.in_features)
            dense.index_add_(0, places, module.weight.detach() * (delays == delay))
            weights[delay] = dense.view(node.size, module.in_features)
        return sum_of_delays(weights, module.bias, node.input_shapes[0], dt)


class DelayedSparseSynapses(SparseSynapses):
    """:class:`hibana.SparseLinear` with a delay for each synapse."""

    name = "delayed sparse"
    types = (DelayedSparseLinear,)
    over_time = True

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add each nonzero input, after its delays, to a ring of the outputs' sums."""
        module, order, inputs = node.module, in_order(node.size), to.activations[node.inputs[0]]
        ring = Ring(to, node, order, longest_delay(module.connections) + 1)
        add_synapses(to, reordered(module.connections, inputs.order), inputs, node.size, ring.place)
        return Activations(node, order, ring.take(module.bias))
