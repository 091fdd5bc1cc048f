"""The layers before the first layer over time, whose outputs depend on the input of the same step alone.

They are a separate function, so that a sequence computes them for several steps at once, and once for an
input that is the same at each step. The order of sums is the same for both.
"""

from collections.abc import Callable
from typing import Any

from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, spread
from hibana.network.native.emitter import Emitter, PackedRows, vector_parts
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Longs, Pointer, Value, function

__all__ = ["KINDS", "StaticLayers"]

STEPS = 5
"""Steps of a dense input that are multiplied at once: their sums, a row of weights and an input take 13 of
the 16 registers of AVX2. On Zen 3 and for T=25, 4 and 6 steps take 1.2 and 1.05 times as long.
"""
MAX_GROUPS, MAX_RESULT_BYTES = 5, 96 << 10
"""Bounds of the groups of `STEPS` that are computed together, and of the bytes of their results. All groups
read the weights of a few outputs, which stay in L2, before the weights of the next outputs.
"""
REGISTER_BYTES = 64
"""Bytes of sums of a step: one register of AVX-512, two of AVX2; more do not fit for all steps."""
MIN_STEPS = 3
"""Fewest steps for which a product of `STEPS`, with the last steps repeated, is faster than single steps."""
KINDS = {"state": Bytes, "weights": Bytes, "scratch": Bytes, "functions": Longs}
"""Parameters of each function of a step, besides its input and output."""


class StaticLayers:
    """The static layers of `network` as functions; their results lie in scratch memory.

    Args:
        network: the network.
        write: writes one layer with an emitter, given the pointer to the network's input.
    """

    def __init__(self, network: Network, write: Callable[[Emitter, Node, Pointer], None]) -> None:
        self.nodes = network.static_nodes
        number = Emitter.number_pointer(network.dtype)
        emitters: list[Emitter] = []

        def body(code: Code, inputs: Any, **blocks: Any) -> None:
            """Writes one step of the static layers."""
            emitter = Emitter(code, network.dtype, blocks)
            emitters.append(emitter)
            for node in self.nodes:
                write(emitter, node, inputs)

        self._step = function("still", body, {"inputs": number, **KINDS})
        (self.emitter,) = emitters
        activations = self.emitter.activations
        self._offsets = {
            node: self.emitter.offset(self.emitter.numbers(activations[node])) for node in self.nodes[1:]
        }
        self.size = self.emitter.scratch.size
        """Bytes of the results of a step."""
        self.steps = 1
        """Steps that are computed together."""
        self._block: Function | None = None
        """The function that computes `steps` of a dense input, if the only static layer is linear."""
        if [node.kind for node in self.nodes] == ["input", "linear"]:
            self.steps = STEPS * max(1, min(MAX_GROUPS, MAX_RESULT_BYTES // (STEPS * self.size)))
            (packed,) = self.emitter.packed.values()
            self._block = self._block_function(packed, self._offsets[self.nodes[1]])

    def activations(self, results: Bytes, number: type[Pointer]) -> dict[Node, Activations]:
        """The activations of the static layers, whose numbers are in the `results` of a step."""
        return {
            node: Activations(node, a.order, (results + self._offsets[node]).of(number), binary=a.binary)
            for node, a in self.emitter.activations.items()
            if node in self._offsets
        }

    def compute(
        self, code: Code, row: Pointer, stride: Value, count: Value, blocks: dict[str, Any], results: Pointer
    ) -> None:
        """Writes the computation of up to :attr:`steps` steps.

        Args:
            code: the code of the calling function.
            row: the input of the first step.
            stride: numbers from the input of one step to that of the next.
            count: the number of steps.
            blocks: the other arguments of the functions, by name.
            results: the memory for the results of all steps.
        """
        memory = [blocks["state"], blocks["weights"]]
        singles = count
        if self._block is not None:
            is_dense = self._is_dense(code, row, stride, count)
            with code.when(is_dense):
                self._block.do(code, row, stride, count, *memory, results, blocks["functions"])
            singles = is_dense.select(0, count)
        with code.loop(0, singles) as k:
            self._step.do(code, row + k * stride, *memory, results + k * self.size, blocks["functions"])

    def _is_dense(self, code: Code, row: Pointer, stride: Value, count: Value) -> Value:
        """Whether `count` is at least :data:`MIN_STEPS`, and most inputs are not zero."""
        size, width = self.nodes[0].size, 32
        nonzero = code.variable(0)
        with code.loop(0, (count >= MIN_STEPS).select(count, 0)) as k:
            for offset, mask in code.vectors(code.constant(size), width):
                differs = (row + k * stride + offset).load(width, mask).differs(0)
                nonzero.value = nonzero.value + differs.word().popcount().to(LONG)
        return nonzero.value * 2 > count * size

    def _block_function(self, packed: PackedRows, offset: int) -> Function:
        """The linear layer with the weights `packed` on up to :attr:`steps` inputs, `STEPS` at once.

        The last input is repeated to complete a group. Results of a step begin at `offset` bytes.
        """
        number = self.emitter.number
        per_register = REGISTER_BYTES // number.element.size

        def body(code: Code, inputs: Any, stride: Value, count: Value, **blocks: Any) -> None:
            """Writes the product of the weights with `count` steps of inputs, `stride` numbers apart."""
            emitter = Emitter(code, self.emitter.dtype, blocks, self.emitter)
            zero = code.constant(0, number.element)
            chunks = packed.chunks
            # a chunk is its first output, its number of outputs and the byte offset of its rows; a part is a
            # chunk with the first output and the width of one vector in it
            parts = [(chunk, *part) for chunk in chunks for part in vector_parts(chunk[1], per_register)]
            for (first, width, place), begin, n in parts:
                weights = (blocks["weights"] + place).of(number)
                with code.loop(0, count, STEPS) as t:
                    rows = [inputs + (count - 1).smaller(t + s) * stride for s in range(STEPS)]
                    totals = [code.variable(spread(zero, n)) for _ in range(STEPS)]
                    with code.loop(0, packed.inputs) as i:
                        row = (weights + (i * width + begin)).load(n)
                        for x, total in zip(rows, totals, strict=True):
                            total.value = total.value + spread(x[i], n) * row
                    for s, total in enumerate(totals):
                        out = (blocks["scratch"] + ((t + s) * self.size + offset)).of(number)
                        sums = emitter.with_bias(total.value, packed, first + begin)
                        (out + (first + begin)).store(sums)

        return function("block", body, {"inputs": number, "stride": LONG, "count": LONG, **KINDS})
