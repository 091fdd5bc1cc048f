"""What a program computes with: the types of its numbers, how they are written, and how a step is said."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from hibana.compiler.c import source
from hibana.compiler.c.integers import Bounds, Integer, integer_statements
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores
from hibana.network.graph import Network, Node
from hibana.network.lowering import in_order
from hibana.network.neurons import NeuronLayer, trace_layer
from hibana.network.sliding_window import sliding_window

__all__ = ["FloatArithmetic", "Arithmetic", "IntegerArithmetic"]


class Arithmetic(ABC):
    """A kind of numbers."""

    kind: str
    """What sums and states are."""
    input: str
    """What is given at each step."""
    lowest: str
    """Less than any number."""
    guards: tuple[str, ...]
    """What has to hold where the program is compiled, in the preprocessor's words."""
    runs: str = "that it was made with; it runs any number"
    """For how many steps it may run."""
    remarks: tuple[str, ...] = ()
    """What is to be said of the numbers."""

    @abstractmethod
    def statements(self, made: NeuronLayer, stores: Stores) -> tuple[list[str], dict[str, str]]:
        """The body of a loop over neurons that computes `stores`, and what stands for each.

        Raises:
            Unsupported: naming the layer, if an operation can't be said.
        """

    @abstractmethod
    def of(self, name: str, values: Tensor) -> str:
        """The type that the constants `values` of the layer `name` are written in.

        Raises:
            ValueError: if they are no such numbers.
        """

    def literal(self, number: float, kind: str) -> str:
        """A number as a literal of a type."""
        return source.literal(number, kind) if kind in ("float", "double") else str(int(number))


@final
class FloatArithmetic(Arithmetic):
    """Numbers of IEEE 754, in the order of operations in which the step is written."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"numbers of {dtype} are nothing that C has; use float32 or float64")
        self.kind = self.input = "float" if dtype == torch.float32 else "double"
        self.lowest = "(-INFINITY)"
        self.guards = _GUARDS

    def statements(self, made: NeuronLayer, stores: Stores) -> tuple[list[str], dict[str, str]]:
        try:
            return source.neuron_statements(
                stores, lambda name, leaf: self._said(made.leaf_value(name, leaf)), source.dialect(self.kind)
            )
        except Unsupported as refused:
            raise Unsupported(f"layer {made.node.name!r}: {refused}") from refused

    def _said(self, stands: str | float) -> str:
        return stands if isinstance(stands, str) else self.literal(stands, self.kind)

    def of(self, name: str, values: Tensor) -> str:
        if not bool(values.isfinite().all()):
            raise ValueError(f"layer {name!r}: its weights must be finite, and some are not")
        return self.kind


@final
class IntegerArithmetic(Arithmetic):
    """Whole numbers of 32 bits, with bounds that prove that none overflows in so many steps."""

    def __init__(
        self,
        network: Network,
        range_: Bounds,
        scales: tuple[float, float],
        steps: int,
        *,
        summed: int = 1,
    ) -> None:
        """Bounds the numbers of `network`.

        Args:
            network: with integer weights.
            range_: the smallest and the largest input.
            scales: the factors between inputs, or outputs, and PyTorch's.
            steps: for which no number may overflow.
            summed: how many outputs are added up.

        Raises:
            Unsupported: naming the layer, if a number may not fit in 32 bits, or is not an integer.
        """
        self.range, self.steps = range_, steps
        input_scale, output_scale = scales
        self.runs = "at most, from a reset on: a number may overflow beyond"
        self.remarks = (
            f"Whole numbers: an input is x / {input_scale:.9g}, rounded, from {range_[0]} to {range_[1]};",
            f"an output times {output_scale:.9g} is PyTorch's. No number overflows within {steps} steps.",
        )
        self.kind, self.input = "int32_t", "uint8_t" if range_[0] >= 0 else "int8_t"
        self.lowest, self.guards = "INT32_MIN", ()
        self.bounds: dict[Node, Bounds] = {}
        self.states: dict[Node, dict[str, Bounds]] = {}
        self.largest = 0
        """The largest number in any computation."""
        for node in network.nodes[1:]:
            self.bounds[node] = self._bounds(node, network.dtype)
            self._check(node, "a sum", self.bounds[node])
        low, high = self.bounds.get(network.output, range_)
        self._check(network.output, "the sum over time", (low * summed, high * summed))

    def of(self, name: str, values: Tensor) -> str:
        if not bool((values == values.round()).all()):
            raise ValueError(f"layer {name!r}: its weights must be whole numbers, and some are not")
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest >= 2**31:
            raise Unsupported(f"layer {name!r}: a constant of {largest:,.0f} does not fit in 32 bits")
        return "int8_t" if largest < 2**7 else "int16_t" if largest < 2**15 else "int32_t"

    def statements(self, made: NeuronLayer, stores: Stores) -> tuple[list[str], dict[str, str]]:
        lines, said, _ = self._said(made, stores, self.states[made.node])
        return lines, {name: value.text for name, value in said.items()}

    def _said(
        self, made: NeuronLayer, stores: Stores, bounds: dict[str, Bounds]
    ) -> tuple[list[str], dict[str, Integer], int]:
        try:
            return integer_statements(stores, made.leaf_value, bounds)
        except Unsupported as refused:
            raise Unsupported(f"layer {made.node.name!r}: {refused}") from refused

    def _bounds(self, node: Node, dtype: torch.dtype) -> Bounds:
        """The bounds of a layer's output."""
        inputs = [self.bounds.get(source, self.range) for source in node.inputs]
        places = in_order(node.inputs[0].size)
        if node.layer.weighted:
            weights, bias = node.layer.weights(node, places)
            groups = getattr(node.module, "groups", 1)
            self._check(node, "a sum", self._sum(weights, None, inputs[0], groups))
            return self._sum(weights, bias, inputs[0], groups)
        if node.kind == "neurons":
            return self._state_bounds(trace_layer(node, 0, places, dtype), inputs[0])
        taps = math.prod(sliding_window(node).kernel) if node.kind == "average" else 1
        low, high = (sum(end[i] for end in inputs) * taps for i in (0, 1))
        zeros = taps > 1 or node.kind == "delay"  # pixels beyond the image, steps before the first
        return (min(0, low), max(0, high)) if zeros else (low, high)

    def _state_bounds(self, made: NeuronLayer, x: Bounds) -> Bounds:
        """Bounds all states over the steps; those of the spikes, or of the last state."""
        bounds = {f"p{i}": _ends(values) for i, values in enumerate(made.parameters)} | {"x": x}
        names = [*made.step.states[:-1], "emitted_before"]
        bounds |= {name: _ends(begun) for name, begun in zip(names, made.initial_state, strict=True)}
        for _ in range(self.steps):
            before = dict(bounds)
            for i, product in enumerate(made.products):
                operand = self._said(made, {"operand": product.operand}, bounds)[1]["operand"]
                low, high = (0, 1) if product.is_binary else (operand.low, operand.high)
                bounds[f"product{i}"] = self._sum(made.weights(product), None, (low, high))
                self._check(made.node, "a sum", bounds[f"product{i}"])
            _, said, largest = self._said(made, made.stores, bounds)
            self.largest = max(self.largest, largest)
            for j, (name, value) in enumerate(zip(names, said.values(), strict=True)):
                state = made.step.states[j].removesuffix("_state")
                if value.exponent:
                    raise Unsupported(f"layer {made.node.name!r}: {state} is no whole number after a step")
                low, high = (0, 1) if j in made.binary_states else (value.low, value.high)
                bounds[name] = min(bounds[name][0], low), max(bounds[name][1], high)
                self._check(made.node, f"state {state}", bounds[name])
            if bounds == before:
                break
        self.states[made.node] = bounds
        return bounds["emitted_before"]

    def _sum(self, weights: Tensor, bias: Tensor | None, of: Bounds, groups: int = 1) -> Bounds:
        """The bounds of sums of numbers, of which some may be left out, times weights ``[..., outputs]``.

        The outputs are those of a group, and rows stand group by group.
        """
        low, high = min(0, of[0]), max(0, of[1])
        rows = weights.detach().double().reshape(groups, -1, weights.shape[-1])
        more, less = rows.clamp(min=0).sum(1).flatten(), rows.clamp(max=0).sum(1).flatten()
        one = torch.zeros_like(more) if bias is None else bias.detach().double()
        most = (more * high + less * low + one).max()
        least = (more * low + less * high + one).min()
        self.largest = max(self.largest, int(((more - less) * max(-low, high) + one.abs()).max()))
        return int(least), int(most)

    def _check(self, node: Node, what: str, bounds: Bounds) -> None:
        self.largest = max(self.largest, -bounds[0], bounds[1])
        if -bounds[0] >= 2**31 or bounds[1] >= 2**31:
            most = max(-bounds[0], bounds[1])
            raise Unsupported(
                f"layer {node.name!r}: {what} may reach {most:,} in {self.steps} steps, "
                "more than 32 bits hold; calibrate with fewer steps, or take fewer bits"
            )


def _ends(values: Tensor) -> Bounds:
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
