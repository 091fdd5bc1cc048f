"""Sparse linear layers: loops over the stored synapses of each nonzero input."""

from collections.abc import Callable

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.delay import sum_of_delays
from hibana.network.layers.ring import Ring
from hibana.network.lowering import Activations, Lowering, in_order, times
from hibana.network.nir_node import NirNode
from hibana.network.onnx_export import OnnxStep
from hibana.nn.sparse_linear import DelayedSparseLinear, SparseLinear
from hibana.runtime.kernels import LONG, Pointer, Value
from hibana.spikes.sparse import Connections

__all__ = ["DelayedSparseSynapses", "SparseSynapses"]

MAX_NUMBERS = 1 << 26
"""Most numbers of a table that stands for sparse weights where a format has no sparse form: 256 MiB."""
_MAX_INDEX = 1 << 31
"""Indices of synapses and of sums have 31 bits."""


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
        synapses = (module.weight.numel(),)
        arrays = {"weight": synapses, "targets": synapses, "row_starts": (shape[0] + 1,)}
        has_delays = module.delays is not None
        self.require(node, (module.out_features,), arrays | ({"delays": synapses} if has_delays else {}))
        if max(synapses[0], (_longest_delay(module) + 1) * node.size) >= _MAX_INDEX:
            self.refuse_setting(node, f"a layer of {synapses[0]:,} synapses, or of sums in 2^31 places,")
        starts, targets = module.row_starts, module.targets
        is_sorted = (
            int(starts[0]) == 0 and int(starts[-1]) == synapses[0] and bool((starts.diff() >= 0).all())
        )
        if not is_sorted or bool(((targets < 0) | (targets >= node.size)).any()):
            self.refuse_setting(
                node,
                f"row_starts that do not rise from 0 to {synapses[0]}, or targets not in [0, {node.size}),",
            )

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One addition for each synapse."""
        synapses, source = node.module.weight.numel(), node.inputs[0]
        return Operations(synapses, synapses * source.density, source.size * node.size)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights of each output's synapses, ``[synapses of an output, outputs]``, and the bias."""
        weight = node.module.weight.detach()
        return _padded(weight, self._synapses_of_outputs(node)).T, node.module.bias

    def _synapses_of_outputs(self, node: Node) -> Tensor:
        """The indices of each output's synapses, ``[outputs, most synapses of an output]``; the rest is -1.

        Raises:
            Unsupported: naming the layer, if the table is larger than :data:`MAX_NUMBERS`.
        """
        targets = node.module.targets.long().cpu()
        counts = torch.bincount(targets, minlength=node.size)
        most = max(1, int(counts.max()))
        self._check_table(node, node.size * most, "the table of its outputs' synapses")
        table = torch.full((node.size, most), -1, dtype=torch.int64, device="cpu")
        by_target = targets.argsort(stable=True)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        table[targets[by_target], in_order(len(targets)) - first] = by_target
        return table

    def _check_table(self, node: Node, numbers: int, description: str) -> None:
        """Raises Unsupported, with `description`, if a table has more than :data:`MAX_NUMBERS` numbers."""
        if numbers > MAX_NUMBERS:
            raise Unsupported(
                f"layer {node.name!r}: {description} has {numbers:,} numbers, more than {MAX_NUMBERS:,}; "
                "this format has no sparse weights"
            )

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the inputs of each output's synapses, times their weights, summed for each output."""
        module, table = node.module, self._synapses_of_outputs(node)
        reach, features = _longest_delay(module), node.inputs[0].size
        place = module.sources * (reach + 1) + reach
        if module.delays is not None:
            place = place - module.delays.long()
        past = step.op("Flatten", [step.past(inputs[0], features, 1, reach)], axis=1)
        gathered = step.op("Gather", [past, step.constant(_padded(place, table))], axis=1)
        weights = _padded(module.weight.detach(), table)
        products = step.op("Mul", [gathered, step.constant(weights)])
        # MatMul, because OpenVINO 2026.4 computes ReduceSum of one number and a bias added to it wrongly
        total = step.op("MatMul", [products, step.constant(torch.ones_like(weights[0]))])
        return total if module.bias is None else step.op("Add", [total, step.constant(module.bias)])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add the weights of each nonzero input to the sums of its targets."""
        inputs, order, out = to.activations[node.inputs[0]], in_order(node.size), to.temporary(node.size)
        out.clear(node.size)
        _add_synapses(to, node, inputs, lambda target: out + target)
        if node.module.bias is not None:
            to.add_bias(out, node.module.bias, node.size)
        return Activations(node, order, out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A linear node with the dense weight; with delays, a graph with a dense weight for each delay."""
        module = node.module
        delays = torch.zeros_like(module.targets) if module.delays is None else module.delays
        steps = delays.unique().tolist() or [0]
        self._check_table(node, len(steps) * node.size * module.in_features, "its dense weight")
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
        ring = Ring(to, node, order, _longest_delay(module) + 1)
        _add_synapses(to, node, inputs, ring.place)
        return Activations(node, order, ring.take(module.bias))


def _longest_delay(module: SparseLinear) -> int:
    """The longest delay of a synapse of `module` in steps."""
    return int(module.delays.max()) if module.delays is not None and module.delays.numel() else 0


def _padded(values: Tensor, table: Tensor) -> Tensor:
    """``values[table]``, with 0 where `table` is -1."""
    extended = torch.cat([values, values.new_zeros(1)])
    return extended[table]


def _in_memory_order(module: SparseLinear, order: Tensor) -> Connections:
    """The synapses of `module`, with rows in the `order` of the inputs in memory."""
    synapses = module.connections
    if torch.equal(order, in_order(len(order))):
        return synapses
    lengths = synapses.row_starts.diff()[order]
    row_starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shift = (synapses.row_starts[order] - row_starts[:-1]).repeat_interleave(lengths)
    indices = in_order(synapses.size) + shift
    delays, weights = (None if x is None else x[indices] for x in (synapses.delays, synapses.weights))
    return Connections(row_starts, synapses.targets[indices], delays, weights)


def _add_synapses(to: Lowering, node: Node, inputs: Activations, place: Callable[[Value], Pointer]) -> None:
    """Writes loops that add the weights of each nonzero input to the sums that they reach.

    Args:
        to: the code under construction.
        node: the sparse layer.
        inputs: its inputs at the current step.
        place: the address of a sum from its index: ``delay * outputs + target``.
    """
    synapses = _in_memory_order(node.module, inputs.order)
    assert synapses.weights is not None
    indices, weights = synapses.targets.long(), synapses.weights.detach()
    if synapses.delays is not None:
        indices = indices + synapses.delays.long() * node.size
    if synapses.size == 0:  # C has no arrays without elements: one synapse, which no row contains
        indices, weights = indices.new_zeros(1), weights.new_zeros(1)
    starts, rows = to.indices(synapses.row_starts, "starts"), to.constant(weights)
    targets = to.indices(indices, "targets" if synapses.delays is None else "places")
    with to.each_nonzero(inputs) as (i, x):
        end = starts[i + 1].to(LONG).named("end")
        with to.code.loop(starts[i].to(LONG), end, name="synapse") as synapse:
            target = place(targets[synapse].to(LONG))
            target.store(target.load() + times(rows[synapse], x))
