"""The code of a step of one sample under construction: where values lie, and loops that layers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.lowering import Activations, Kind, Lowering, spread, times
from hibana.network.native.blocks import Array, Block
from hibana.network.native.neurons import neurons
from hibana.runtime.kernels import INT, LONG, Bytes, Code, Doubles, Floats, Ints, Longs, Pointer, Value

__all__ = ["VECTOR", "Emitter", "Packed", "parts_of"]

VECTOR = 32
"""Numbers that an element-wise loop takes at a time."""
CHUNK = 64
"""Sums that are kept in registers while rows are added: four registers of AVX-512, eight of AVX2."""


@dataclass(frozen=True)
class Packed:
    """Rows of weights among the constants, a chunk of outputs after the other, and a bias."""

    inputs: int
    chunks: tuple[tuple[int, int, int], ...]
    """Of each its first output, how many it has, and where its rows begin, in bytes."""
    bias: int | None
    """Where it begins, in bytes."""


class Emitter(Lowering):
    """Writes a function that computes layers of one step of one sample.

    Constants and the state lie in blocks, at offsets that the code has in it; so does what lives for a step
    only, in scratch memory. Another function of the same step has the constants and the state of `before`.
    """

    target = "native"

    def __init__(
        self, code: Code, dtype: torch.dtype, at: dict[str, Any], before: "Emitter | None" = None
    ) -> None:
        self.code, self.dtype = code, dtype
        self.number = self.number_of(dtype)
        self.state_at: Bytes = at["state"]
        self.weights_at: Bytes = at["weights"]
        self.scratch_at: Bytes = at["scratch"]
        self.functions_at: Longs = at["functions"]
        self.scratch = Block()
        self.weights: Block = before.weights if before else Block()
        self.state: Block = before.state if before else Block()
        self.arrays: list[Array] = before.arrays if before else []
        """What the state holds."""
        self.functions: list[int] = before.functions if before else []
        """Addresses of the vector functions that are called."""
        self.activations: dict[Node, Activations] = {}
        self.packed: dict[Node, Packed] = {}
        """The weights of linear layers."""
        self._offsets: dict[str, int] = {}

    @staticmethod
    def number_of(dtype: torch.dtype) -> type[Pointer]:
        """Addresses of numbers of `dtype`."""
        return Doubles if dtype == torch.float64 else Floats

    def constant(self, values: Tensor, name: str = "") -> Pointer:
        return (self.weights_at + self._place(values)).of(self.number)

    def factor(self, number: float) -> Value:
        return self.constant(torch.tensor([number], dtype=torch.float64, device="cpu"))[0]

    def lowest(self) -> Value:
        return self.code.constant(-torch.inf, self.number.element)

    def indices(self, values: Tensor, name: str = "") -> Ints:
        return (self.weights_at + self.weights.add(values.to(torch.int32))).of(Ints)

    def function(self, address: int) -> Pointer:
        """The vector function at `address`, as the code is given it."""
        if address not in self.functions:
            self.functions.append(address)
        return Pointer.at(self.functions_at[self.functions.index(address)])

    def bits(self, count: int) -> Bytes:
        return self.temporary(-(-count // 64) * 8, Bytes).of(Bytes)

    def temporary(self, count: int, kind: type[Pointer] | None = None, *, binary: bool = False) -> Pointer:
        kind = kind or self.number
        offset = self.scratch.reserve(count * kind.element.size)
        made = (self.scratch_at + offset).of(kind)
        self._offsets[made.text] = offset
        return made

    def offset(self, temporary: Pointer) -> int:
        """Where an array that :meth:`temporary` gave lies in scratch memory, in bytes."""
        return self._offsets[temporary.text]

    def lasting(
        self,
        kind: Kind,
        rest: Tensor,
        of: Node,
        places: Tensor,
        shape: tuple[int, ...],
        *,
        binary: bool = False,
    ) -> Bytes:
        offset = self.state.add(rest)
        self.arrays.append(Array(of.name, kind, offset, shape, places))
        return self.state_at + offset

    def vectors(self, count: int) -> Iterator[tuple[Any, int]]:
        whole = count - count % VECTOR
        if whole:
            with self.code.loop(0, whole, VECTOR) as at:
                yield at, VECTOR
        for first, vector_width in parts_of(count - whole):
            yield whole + first, vector_width

    @contextmanager
    def registers(self, count: int) -> Iterator[list[tuple[Any, int]]]:
        yield parts_of(count)

    def numbers(self, held: Activations) -> Pointer:
        if held.numbers is None:
            held.numbers = self.temporary(held.node.size)
            self.expand(held, held.numbers)
        return held.numbers

    def expand(self, held: Activations, target: Pointer) -> None:
        """Writes the numbers of bits to `target`."""
        assert held.bits is not None
        for at, vector_width in self.vectors(held.node.size):
            if isinstance(at, Value):
                mask = held.bits.of(Ints)[at // 32].mask(vector_width)
            else:
                mask = (held.bits.of(Longs)[at // 64] >> (at % 64)).mask(vector_width)
            one = self.code.constant(1, self.number.element.of(vector_width))
            (target + at).store(mask.select(one, 0))

    def listed(self, held: Activations) -> tuple[Pointer, Value]:
        """The places of what is not zero, and how many there are."""
        if held.active is None:
            size, found = held.node.size, self.code.variable(0)
            places = self.temporary(size, Ints).of(Ints)

            def keep(word: Value, first: Any) -> None:
                with self.code.each_bit(word) as bit:
                    count = found.value
                    places[count] = (bit + first).to(INT)
                    found.value = count + 1

            if held.bits is not None:
                with self.code.loop(0, -(-size // 64)) as w:
                    keep(held.bits.of(Longs)[w], w * 64)
            else:
                numbers = self.numbers(held)
                for at, vector_width in self.vectors(size):
                    keep((numbers + at).load(vector_width).differs(0).word().to(LONG), at)
            held.active = places, found.value
        return held.active

    @contextmanager
    def each_active(self, held: Activations) -> Iterator[tuple[Value, Value | None]]:
        places, count = self.listed(held)
        with self.code.loop(0, count) as k:
            i = places[k].to(LONG)
            yield i, None if held.binary else self.numbers(held)[i]

    def pack(self, rows: Tensor, bias: Tensor | None = None) -> Packed:
        """Rows ``[inputs, outputs]`` among the constants; the weights of a chunk of outputs lie together."""
        inputs, outputs = rows.shape
        size, chunks = CHUNK * 4 // self.number.element.size, []
        for first in range(0, outputs, size):
            width = min(size, outputs - first)
            chunks.append((first, width, self._place(rows[:, first : first + width])))
        return Packed(inputs, tuple(chunks), None if bias is None else self._place(bias))

    def _place(self, values: Tensor) -> int:
        return self.weights.add(values.to(self.dtype))

    def add_rows(self, held: Activations, packed: Packed, out: Pointer) -> None:
        """``out = sum_i x_i rows[i] + bias`` over what is not zero, in rising order, the bias last."""
        zero = self.code.constant(0, self.number.element)
        for first, width, offset in packed.chunks:
            weights = (self.weights_at + offset).of(self.number)
            parts = [(at, n, self.code.variable(spread(zero, n))) for at, n in parts_of(width)]
            with self.each_active(held) as (i, x):
                row = weights + i * width
                for at, vector_width, total in parts:
                    total.value = total.value + times((row + at).load(vector_width), x)
            for at, _, total in parts:
                place = first + at
                (out + place).store(self.biased(total.value, packed, place))

    def biased(self, sums: Value, packed: Packed, place: int) -> Value:
        """Sums of the outputs from `place` on, with their bias if there is one."""
        if packed.bias is None:
            return sums
        bias = (self.weights_at + packed.bias).of(self.number)
        return sums + (bias + place).load(sums.type.width)

    def product(
        self, node: Node, read: Activations, weights: Tensor, bias: Tensor | None, out: Pointer
    ) -> None:
        packed = self.packed[node] = self.pack(weights, bias)
        self.add_rows(read, packed, out)

    def neurons(self, node: Node, read: Activations) -> Activations:
        return neurons(self, node, len(self.activations), read)


def parts_of(count: int) -> list[tuple[int, int]]:
    """Vectors that cover `count` elements, the longest first: where each begins, and its width."""
    vector_width = [CHUNK] * (count // CHUNK) + [1 << b for b in reversed(range(6)) if count % CHUNK & 1 << b]
    return list(zip(accumulate([0, *vector_width]), vector_width, strict=False))
