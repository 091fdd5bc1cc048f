"""Layers of neurons: any cell over time, with or without synapses back to itself."""

from typing import Any, Literal

import torch
from torch import nn

from hibana.cells.surrogate import Step
from hibana.compiler.c.source import operation_count
from hibana.compiler.graph.leaf import INPUT, OPERAND, OUTPUT, Leaf
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.delay import Ring
from hibana.network.layers.nir_neurons import neuron_node, neurons_of, recurrent_node
from hibana.network.layers.sparse import add_synapses
from hibana.network.lowering import Activations, Lowering, StateArray
from hibana.network.neurons import trace_layer
from hibana.network.nir_node import NirNode, check_broadcasts
from hibana.network.node import Node, Shape, in_order
from hibana.network.onnx_step import OnnxStep
from hibana.network.synapses import check_connections, connections_of
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack
from hibana.runtime.kernels import Bytes, Pointer
from hibana.spikes.sparse import Connections

__all__ = ["Neurons"]


class Neurons(LayerKind):
    """:class:`hibana.OverTime` (:class:`hibana.LIF`, ...) and :class:`hibana.Recurrent`.

    The recurrent synapses may have delays: a :class:`hibana.DelayedLinear` or :class:`hibana.SparseLinear`.
    """

    name = "neurons"
    types: tuple[type[nn.Module], ...] = (OverTime, Recurrent)
    nir_types = ("IF", "LIF", "CubaLIF", "LI", "I")
    over_time = elementwise = has_integers = True

    def check(self, node: Node) -> None:
        """Raises Unsupported unless the arrays of delayed synapses have the sizes that loops read."""
        super().check(node)
        synapses, (shape,) = _delayed_synapses(node), node.input_shapes
        if isinstance(synapses, SparseLinear):
            check_connections(node, synapses.connections, *shape, *shape)
        elif synapses is not None:
            self.require(node, shape, {"recurrent.weight": shape * 2, "recurrent.delay": shape * 2})

    def title(self, node: Node) -> str:
        """The name of the cell, such as ``LIF``, ``recurrent LIF``, or ``delayed recurrent LIF``."""
        module = node.module
        cell = module.cell._get_name().removesuffix("Cell")
        delayed = "delayed " if _delayed_synapses(node) is not None else ""
        return cell if isinstance(module, OverTime) else f"{delayed}recurrent {cell}"

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """The operations of the cell per neuron, and the products with recurrent weights."""
        layer = trace_layer(node, in_order(node.size), dtype)
        matrices = [layer.matrices[product.matrix] for product in layer.products]
        synapses = sum(m.size if isinstance(m, Connections) else m.numel() for m in matrices)
        delayed = _delayed_synapses(node)
        if delayed is not None:
            synapses += delayed.weight.numel()
        neurons = operation_count(layer.stores) * node.size
        at_rates = neurons + synapses * (node.density if layer.emits_spikes else 1.0)
        dense = (len(layer.products) + (delayed is not None)) * node.size**2
        return Operations(neurons + synapses, at_rates, dense)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the operators of one step of the cell."""
        if _delayed_synapses(node) is not None:
            self.refuse(node, "ONNX")
        return step.neurons(node, inputs[0])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes one step of the cell on the input plus the delayed feedback, which a ring holds."""
        inputs, synapses = to.activations[node.inputs[0]], _delayed_synapses(node)
        if synapses is None:
            return _write_step(to, node, inputs)
        order = in_order(node.size)
        inputs = to.reordered(inputs, order)
        ring = Ring(to, node, order, synapses.reach + 1)
        numbers, currents = to.numbers(inputs), ring.take(synapses.bias)
        for offset, width in to.vectors(node.size):
            target = currents + offset
            target.store((numbers + offset).load(width) + target.load(width))
        outputs = _write_step(to, node, Activations(node, order, currents))
        add_synapses(to, connections_of(synapses), outputs, node.size, ring.place, "feedback_")
        return outputs

    def to_nir(self, node: Node, dt: float) -> NirNode | tuple[NirNode, ...]:
        """A node of the cell, or a NIR graph with recurrent synapses."""
        module = node.module
        if _delayed_synapses(node) is not None:
            self.refuse(node, "NIR")
        neurons = neuron_node(module.cell, node.shape, dt)
        return neurons if isinstance(module, OverTime) else recurrent_node(node, neurons)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The layer of neurons of the node."""
        check_broadcasts(node.fields["r"], shape)
        return neurons_of(node, dt)

    def lost_in_nir(self, module: nn.Module) -> str:
        """The settings that NIR cannot store: a surrogate other than the default, and ``detach_reset``."""
        cell: Any = module.cell
        if not hasattr(cell, "surrogate"):
            return ""
        surrogate = [] if cell.surrogate == Step() else [repr(cell.surrogate)]
        return ", ".join(surrogate + ["detach_reset"] * bool(cell.detach_reset))


def _delayed_synapses(node: Node) -> Any:
    """The recurrent synapses of `node`, a layer of neurons, if they have delays; else None."""
    recurrent = getattr(node.module, "recurrent", None)
    return recurrent if isinstance(recurrent, LooksBack) else None


def _write_step(to: Lowering, node: Node, currents: Activations) -> Activations:
    """Writes one step of the cell of `node` on the input `currents`; returns the output, the last state.

    The states are arrays of the network's state. Each product with a matrix has an array, too.
    """
    layer, order = trace_layer(node, currents.order, to.dtype), currents.order
    states, rows = layer.step.carried, {INPUT: to.numbers(currents)}
    spikes = layer.stores[OUTPUT].as_boolean
    is_packed = to.packs_spikes and layer.emits_spikes and spikes is not None and bool(spikes.args)
    for leaf, name, initial in zip(states, layer.step.states, layer.initial_state, strict=True):
        is_bits, is_binary = is_packed and leaf == states[-1], leaf.index in layer.binary_states
        kind: Literal["numbers", "bits"] = "bits" if is_bits else "numbers"
        array = StateArray(node.name, kind, node.shape, order, is_binary, name)
        rows[leaf] = to.state(array, initial).of(Bytes if is_bits else to.number)
    rows[OUTPUT] = rows[states[-1]]

    def activations(row: Pointer, *, binary: bool) -> Activations:
        """The activations in an array of numbers or bits."""
        if isinstance(row, Bytes):
            return Activations(node, order, bits=row, binary=True)
        return Activations(node, order, row, binary=binary)

    for i, product in enumerate(layer.products):
        operand, out = rows.get(product.operand.leaf), to.temporary(node.size)
        if operand is None:
            operand = to.temporary(node.size, binary=product.is_binary)
            to.compute(layer, {OPERAND: product.operand}, {**rows, OPERAND: operand})
        inputs = activations(operand, binary=product.is_binary)
        weights = layer.matrix(product.matrix, product.transposed)
        name = f"m{product.matrix}{'t' * product.transposed}_"
        if isinstance(weights, Connections):
            out.clear(node.size)
            add_synapses(to, weights, inputs, node.size, out.__add__, name)
        else:
            to.product(node, inputs, weights, None, out, name)
        rows[Leaf("product", i)] = out
    to.compute(layer, layer.stores, rows)
    return activations(rows[OUTPUT], binary=layer.emits_spikes)
