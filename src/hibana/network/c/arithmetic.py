"""The arithmetic of a C program: types of its numbers, and the operations of a neuron's step."""

import torch
from torch import Tensor

from hibana.compiler.c.floats import float_results
from hibana.compiler.c.integers import Bounds, Integer, integer_results
from hibana.compiler.graph.leaf import INPUT, OPERAND, Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, leaves
from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.layers import LAYERS
from hibana.network.neurons import NeuronLayer, trace_layer
from hibana.network.node import Node, in_order
from hibana.network.synapses import by_output
from hibana.runtime.kernels import DOUBLE, FLOAT, INT, Code, Value
from hibana.runtime.loops import Result
from hibana.spikes.sparse import Connections

__all__ = ["Arithmetic", "FloatArithmetic", "IntegerArithmetic"]


class FloatArithmetic:
    """Numbers of IEEE 754; operations keep the order of the step."""

    steps_comment = "of the example; any number of steps may run"
    """The comment in the header beside the number of steps."""
    remarks: tuple[str, ...] = ()
    """Lines about the numbers for the comment at the top of the program."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"C programs compute in float32 or float64, got {dtype}")
        self.kind = self.input = "float" if dtype == torch.float32 else "double"
        """C's types of sums and states, and of the inputs."""
        self.type = FLOAT if dtype == torch.float32 else DOUBLE
        """The type of sums and states."""
        self.guards = _GUARDS
        """Preprocessor lines that refuse compilers with other arithmetic."""

    def results(
        self, code: Code, layer: NeuronLayer, stores: Stores, rows: dict[Leaf, Value]
    ) -> dict[Leaf, Value]:
        """Adds the operations that compute `stores` to `code`, a loop over neurons; returns their results.

        `rows` are the values of the leaves that differ between neurons. Raises Unsupported, naming the layer,
        if an operation has no form in C.
        """
        leaf_values: dict[Leaf, Value | float] = {**layer.shared_numbers(stores), **rows}
        try:
            return float_results(code, self.type, stores, leaf_values)
        except Unsupported as error:
            raise Unsupported(f"layer {layer.node.name!r}: {error}") from error

    def constant_type(self, name: str, values: Tensor) -> str:
        """The C type ``float`` or ``double``; raises a ValueError if a weight is not finite."""
        if not bool(values.isfinite().all()):
            raise ValueError(f"layer {name!r}: its weights must be finite, and some are not")
        return self.kind


class IntegerArithmetic:
    """Integers of 32 bits, with bounds that prove that none overflows within a number of steps."""

    def __init__(self, net: Quantized, network: Network, steps: int, scores: str) -> None:
        """Computes bounds of all numbers of `network`, the graph of `net`.

        Args:
            net: a network in integers.
            network: its graph.
            steps: the number of steps within which no number may overflow.
            scores: the reduction of the outputs over time, as in :func:`to_c`.

        Raises:
            Unsupported: naming the layer, if a number may not fit in 32 bits, or is not an integer.
        """
        self.input_range, self.steps = net.input_range, steps
        low, high = net.input_range
        self.steps_comment = "the most after a reset: a number may overflow beyond"
        self.remarks = (
            f"Whole numbers: an input is x / {net.input_scale:.9g}, rounded, from {low} to {high};",
            f"an output times {net.output_scale:.9g} is PyTorch's. No number overflows within {steps} steps.",
        )
        self.kind, self.input = "int32_t", "uint8_t" if low >= 0 else "int8_t"
        self.type = INT
        self.guards: tuple[str, ...] = ()
        self.bounds: dict[Node, Bounds] = {}
        """Bounds of the outputs of each layer."""
        self.leaf_bounds: dict[Node, dict[Leaf, Bounds]] = {}
        """For each layer of neurons, bounds of the leaves of its step: states, parameters, products."""
        self.largest = 0
        """The largest absolute value in any computation."""
        for node in network.nodes[1:]:
            self.bounds[node] = self._output_bounds(node, network.dtype)
            self._check(node, "a sum", self.bounds[node])
        low, high = self.bounds.get(network.output, net.input_range)
        summed_steps = steps if scores == "sum" else 1
        self._check(network.output, "the sum over time", (low * summed_steps, high * summed_steps))

    def constant_type(self, name: str, values: Tensor) -> str:
        """The smallest C type of integers that holds `values`; raises if they are not integers of 32 bits."""
        if not bool((values == values.round()).all()):
            raise ValueError(f"layer {name!r}: its weights must be whole numbers, and some are not")
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest >= 2**31:
            raise Unsupported(f"layer {name!r}: a constant of {largest:,.0f} does not fit in 32 bits")
        return "int8_t" if largest < 2**7 else "int16_t" if largest < 2**15 else "int32_t"

    def results(
        self, code: Code, layer: NeuronLayer, stores: Stores, rows: dict[Leaf, Value]
    ) -> dict[Leaf, Value]:
        """Adds the operations that compute `stores` to `code`; as :meth:`FloatArithmetic.results`."""
        results, _ = self._integer_step(code, layer, stores, rows, self.leaf_bounds[layer.node])
        return {leaf: result.value for leaf, result in results.items()}

    def _integer_step(
        self,
        code: Code,
        layer: NeuronLayer,
        stores: Stores,
        rows: dict[Leaf, Value],
        bounds: dict[Leaf, Bounds],
    ) -> tuple[dict[Leaf, Integer], int]:
        """Adds operations on integers that compute `stores`; returns their results, and the largest integer.

        `bounds` are the smallest and largest value of each state, parameter and product that `stores` read.
        """
        try:
            return integer_results(code, stores, {**layer.shared_numbers(stores), **rows}, bounds)
        except Unsupported as error:
            raise Unsupported(f"layer {layer.node.name!r}: {error}") from error

    def _bounded_step(
        self, layer: NeuronLayer, stores: Stores, bounds: dict[Leaf, Bounds]
    ) -> tuple[dict[Leaf, Integer], int]:
        """The bounds of `stores`, and the largest integer, without adding operations to the program."""
        code = Code()
        row_leaves = (leaf for leaf, value in leaves(stores).items() if not value.is_scalar)
        rows = {leaf: Value(code.builder, INT, Result(INT)) for leaf in row_leaves}
        return self._integer_step(code, layer, stores, rows, bounds)

    def _output_bounds(self, node: Node, dtype: torch.dtype) -> Bounds:
        """The bounds of the outputs of `node`, from those of its inputs."""
        inputs = [self.bounds.get(source, self.input_range) for source in node.inputs]
        order = in_order(node.inputs[0].size)
        kind = LAYERS[node.kind]
        if kind.weighted:
            weights, bias = kind.weights(node, order)
            groups = getattr(node.module, "groups", 1)
            self._check(node, "a sum", self._sum_bounds(weights, None, inputs[0], groups))
            return self._sum_bounds(weights, bias, inputs[0], groups)
        if node.kind == "neurons":
            return self._neuron_bounds(trace_layer(node, order, dtype), inputs[0])
        *intermediate, output = kind.integer_bounds(node, inputs)
        for bounds in intermediate:
            self._check(node, "a product", bounds)
        return output

    def _neuron_bounds(self, layer: NeuronLayer, x: Bounds) -> Bounds:
        """Bounds all states over the steps, for inputs within `x`; returns the bounds of the output."""
        states = layer.step.carried
        bounds = {Leaf("parameter", i): _range_of(values) for i, values in enumerate(layer.parameters)}
        bounds |= {leaf: _range_of(state) for leaf, state in zip(states, layer.initial_state, strict=True)}
        bounds[INPUT] = x
        for _ in range(self.steps):
            previous = dict(bounds)
            for i, product in enumerate(layer.products):
                vector = self._bounded_step(layer, {OPERAND: product.operand}, bounds)[0][OPERAND]
                factors = (0, 1) if product.is_binary else (vector.low, vector.high)
                weights = layer.matrix(product.matrix, product.transposed)
                if isinstance(weights, Connections):
                    assert weights.weights is not None
                    (by_neuron,) = by_output(weights.targets, layer.node.size, weights.weights)
                    weights = by_neuron.T
                bounds[Leaf("product", i)] = sums = self._sum_bounds(weights, None, factors)
                self._check(layer.node, "a sum", sums)
            results, largest = self._bounded_step(layer, layer.stores, bounds)
            self.largest = max(self.largest, largest)
            for leaf, value in zip(states, results.values(), strict=True):
                state = layer.step.states[leaf.index]
                if value.exponent:
                    raise Unsupported(f"layer {layer.node.name!r}: {state} is no whole number after a step")
                low, high = (0, 1) if leaf.index in layer.binary_states else (value.low, value.high)
                bounds[leaf] = min(bounds[leaf][0], low), max(bounds[leaf][1], high)
                self._check(layer.node, f"state {state}", bounds[leaf])
            if bounds == previous:
                break
        self.leaf_bounds[layer.node] = bounds
        return bounds[states[-1]]

    def _sum_bounds(self, weights: Tensor, bias: Tensor | None, factors: Bounds, groups: int = 1) -> Bounds:
        """Bounds of sums of weights times numbers, also of the partial sums that leave some terms out.

        Args:
            weights: ``[..., outputs]``, the outputs of one group; rows are ordered by group.
            bias: added to each sum.
            factors: bounds of the numbers.
            groups: number of groups of rows that are summed separately.
        """
        low, high = min(0, factors[0]), max(0, factors[1])
        rows = weights.detach().double().reshape(groups, -1, weights.shape[-1])
        positive, negative = rows.clamp(min=0).sum(1).flatten(), rows.clamp(max=0).sum(1).flatten()
        start = torch.zeros_like(positive) if bias is None else bias.detach().double()
        highest = (positive * high + negative * low + start).max()
        lowest = (positive * low + negative * high + start).min()
        self.largest = max(self.largest, int(((positive - negative) * max(-low, high) + start.abs()).max()))
        return int(lowest), int(highest)

    def _check(self, node: Node, description: str, bounds: Bounds) -> None:
        """Raises Unsupported, with the `description` of a number, if its `bounds` do not fit in 32 bits."""
        self.largest = max(self.largest, -bounds[0], bounds[1])
        if -bounds[0] >= 2**31 or bounds[1] >= 2**31:
            largest = max(-bounds[0], bounds[1])
            raise Unsupported(
                f"layer {node.name!r}: {description} may reach {largest:,} in {self.steps} steps, "
                "more than 32 bits hold; calibrate with fewer steps, or take fewer bits"
            )


Arithmetic = FloatArithmetic | IntegerArithmetic
"""The numbers of a program."""


def _range_of(values: Tensor) -> Bounds:
    """The smallest and the largest of `values`."""
    return int(values.min()), int(values.max())


_GUARDS = (
    "#include <float.h>",
    "",
    "/* A product and a sum rounded once would give other spikes than PyTorch's. */",
    "#if defined(__FAST_MATH__)",
    '#error "compile this file without -ffast-math"',
    "#endif",
    "#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16",
    '#error "numbers are computed in more precision than they have: on x86 compile with -msse2 -mfpmath=sse"',
    "#endif",
    "#if defined(__clang__) || !defined(__GNUC__)",
    "#pragma STDC FP_CONTRACT OFF",
    "#elif !defined(__STRICT_ANSI__)",
    '#pragma GCC optimize ("fp-contract=off")',
    "#endif",
)
"""Preprocessor lines that refuse or turn off floating-point arithmetic other than IEEE 754's."""
