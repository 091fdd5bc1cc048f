"""The layers before the first that looks back: what a step computes of its input alone.

They are a function of their own, so that a sequence can compute them for several steps at once, and once for
an input that stays the same. Sums are taken in the same order either way.
"""

from typing import Any

from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, spread
from hibana.network.native.emitter import Emitter, Packed
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Longs, Pointer, Value, function

__all__ = ["KINDS", "Still"]

STEPS = 5
"""Steps of a dense input that are multiplied at once: of 16 registers of AVX2 their sums, a row of weights
and an input take 13. On Zen 3 and for T=25, 4 and 6 take 1.2 and 1.05 times as long.
"""
GROUPS, RESULTS = 5, 96 << 10
"""How many times `STEPS` are computed together at most, and the bytes of their results: the weights of a few
outputs, which lie in L2, are read by all of them before the next ones.
"""
REGISTER_BYTES = 64
"""Bytes of sums of a step: one register of AVX-512, two of AVX2; more do not fit for all steps."""
FEWEST = 3
"""Steps that are worth a product of `STEPS`, of which the others are computed in vain."""
KINDS = {"state": Bytes, "weights": Bytes, "scratch": Bytes, "functions": Longs}
"""Where a function of a step finds what it reads and writes, besides its input and output."""


class Still:
    """The layers of `network` that need no step before, as functions; their results lie in scratch memory.

    Args:
        network: that they are of.
        write: writes a layer by an emitter.
    """

    def __init__(self, network: Network, write: Any) -> None:
        self.nodes = network.static_nodes
        number = Emitter.number_of(network.dtype)
        made: list[Emitter] = []

        def body(code: Code, inputs: Any, **blocks: Any) -> None:
            emitter = Emitter(code, network.dtype, blocks)
            made.append(emitter)
            for node in self.nodes:
                write(emitter, node, inputs)

        self._step = function("still", body, {"inputs": number, **KINDS})
        (self.emitter,) = made
        held = self.emitter.activations
        self._offsets = {
            node: self.emitter.offset(self.emitter.numbers(held[node])) for node in self.nodes[1:]
        }
        self.size = self.emitter.scratch.size
        """Of the results of a step, in bytes."""
        self.steps = 1
        """Steps that are computed together."""
        self._block: Function | None = None
        if [node.kind for node in self.nodes] == ["input", "linear"]:
            self.steps = STEPS * max(1, min(GROUPS, RESULTS // (STEPS * self.size)))
            (packed,) = self.emitter.packed.values()
            self._block = self._blocked(packed, self._offsets[self.nodes[1]])

    def activations(self, results: Bytes, number: type[Pointer]) -> dict[Node, Activations]:
        """The layers' values, of which `results` are those of a step."""
        return {
            node: Activations(node, one.order, (results + self._offsets[node]).of(number), binary=one.binary)
            for node, one in self.emitter.activations.items()
            if node in self._offsets
        }

    def compute(
        self, code: Code, row: Pointer, stride: Value, count: Value, at: dict[str, Any], results: Pointer
    ) -> None:
        """The results of `count` steps, at most `steps`, whose inputs lie `stride` numbers apart."""
        blocks = [at["state"], at["weights"]]
        if self._block is None:
            self._each(code, row, stride, count, blocks, results, at["functions"])
            return
        dense = self._is_dense(code, row, stride, count)
        with code.when(dense):
            self._block.do(code, row, stride, count, *blocks, results, at["functions"])
        self._each(code, row, stride, dense.select(0, count), blocks, results, at["functions"])

    def _each(
        self,
        code: Code,
        row: Pointer,
        stride: Value,
        count: Value,
        blocks: list[Any],
        results: Pointer,
        functions: Longs,
    ) -> None:
        with code.loop(0, count) as k:
            self._step.do(code, row + k * stride, *blocks, results + k * self.size, functions)

    def _is_dense(self, code: Code, row: Pointer, stride: Value, count: Value) -> Value:
        """Whether there are enough steps, and most of their inputs are not zero."""
        size, width = self.nodes[0].size, 32
        found = code.variable(0)
        with code.loop(0, (count >= FEWEST).select(count, 0)) as k:
            for at, there in code.vectors(code.constant(size), width):
                differs = (row + k * stride + at).load(width, there).differs(0)
                found.value = found.value + differs.word().popcount().to(LONG)
        return found.value * 2 > count * size

    def _blocked(self, packed: Packed, offset: int) -> Function:
        """The linear layer on up to `steps` inputs, `STEPS` at once; for those missing, the last again."""
        number = self.emitter.number
        per_register = REGISTER_BYTES // number.element.size

        def body(code: Code, inputs: Any, stride: Value, count: Value, **blocks: Any) -> None:
            emitter = Emitter(code, self.emitter.dtype, blocks, self.emitter)
            zero = code.constant(0, number.element)
            pieces = [(c, *piece) for c in packed.chunks for piece in _pieces(c[1], per_register)]
            for (first, width, place), begin, n in pieces:
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
                        (out + (first + begin)).store(emitter.biased(total.value, packed, first + begin))

        return function("block", body, {"inputs": number, "stride": LONG, "count": LONG, **KINDS})


def _pieces(count: int, most: int) -> list[tuple[int, int]]:
    """Vectors of at most `most` numbers that cover `count`: where each begins, and its width."""
    pieces, at = [], 0
    while at < count:
        width = min(most, 1 << (count - at).bit_length() - 1)
        pieces.append((at, width))
        at += width
    return pieces
