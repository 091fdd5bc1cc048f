"""The code of a step of one sample under construction: where values lie, and loops that layers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.native.blocks import Array, Block, Kind
from hibana.network.sliding import channels_last
from hibana.runtime.kernels import INT, LONG, Bytes, Code, Doubles, Floats, Ints, Longs, Pointer, Value

__all__ = ["VECTOR", "Emitter", "Held", "parts_of", "spread", "times"]

VECTOR = 32
"""Numbers that an element-wise loop takes at a time."""
CHUNK = 64
"""Sums that are kept in registers while rows are added: four registers of AVX-512, eight of AVX2."""


@dataclass(eq=False)
class Held:
    """What a node gives at this step: numbers, or spikes as bits, and a list of what is not zero."""

    node: Node
    places: Tensor
    """Which number of PyTorch's lies at each place."""
    numbers: Pointer | None = None
    bits: Bytes | None = None
    truths: bool = False
    """Whether its numbers are all 0 or 1."""
    active: tuple[Ints, Value] | None = None
    """The places of what is not zero, in rising order, and how many they are; once a layer has asked."""


class Emitter:
    """Writes the function that computes one step of one sample.

    Constants and the state lie in blocks, at offsets that the code has in it; so does what lives for a step
    only, in scratch memory.
    """

    def __init__(self, code: Code, dtype: torch.dtype, at: dict[str, Any]) -> None:
        self.code, self.dtype = code, dtype
        self.number = self.number_of(dtype)
        self.state_at: Bytes = at["state"]
        self.weights_at: Bytes = at["weights"]
        self.scratch_at: Bytes = at["scratch"]
        self.functions_at: Longs = at["functions"]
        self.weights, self.state, self.scratch = Block(), Block(), Block()
        self.arrays: list[Array] = []
        """What the state holds."""
        self.functions: list[int] = []
        """Addresses of the vector functions that are called."""
        self.held: dict[Node, Held] = {}

    @staticmethod
    def number_of(dtype: torch.dtype) -> type[Pointer]:
        """Addresses of numbers of `dtype`."""
        return Doubles if dtype == torch.float64 else Floats

    def constant(self, values: Tensor) -> Pointer:
        """An array of constants, in the step's dtype."""
        return (self.weights_at + self.weights.add(values.to(self.dtype))).of(self.number)

    def indices(self, values: Tensor) -> Ints:
        """An array of constant indices."""
        return (self.weights_at + self.weights.add(values.to(torch.int32))).of(Ints)

    def temporary(self, count: int, kind: type[Pointer] | None = None) -> Pointer:
        """An array that lives for this step."""
        kind = kind or self.number
        return (self.scratch_at + self.scratch.reserve(count * kind.element.size)).of(kind)

    def lasting(self, kind: Kind, rest: Tensor, of: Node, places: Tensor, shape: tuple[int, ...]) -> Bytes:
        """An array of the state, which begins as `rest`."""
        offset = self.state.add(rest)
        self.arrays.append(Array(of.name, kind, offset, shape, places))
        return self.state_at + offset

    def vectors(self, count: int) -> Iterator[tuple[Any, int]]:
        """Offsets of vectors that cover `count` elements, and the width of each."""
        whole = count - count % VECTOR
        if whole:
            with self.code.loop(0, whole, VECTOR) as at:
                yield at, VECTOR
        for first, vector_width in parts_of(count - whole):
            yield whole + first, vector_width

    def numbers(self, held: Held) -> Pointer:
        """Its numbers; of bits, 0 and 1."""
        if held.numbers is None:
            held.numbers = self.temporary(held.node.size)
            self.expand(held, held.numbers)
        return held.numbers

    def expand(self, held: Held, target: Pointer) -> None:
        """Writes the numbers of bits to `target`."""
        assert held.bits is not None
        for at, vector_width in self.vectors(held.node.size):
            if isinstance(at, Value):
                mask = held.bits.of(Ints)[at // 32].mask(vector_width)
            else:
                mask = (held.bits.of(Longs)[at // 64] >> (at % 64)).mask(vector_width)
            one = self.code.constant(1, self.number.element.of(vector_width))
            (target + at).store(mask.select(one, 0))

    def listed(self, held: Held) -> tuple[Ints, Value]:
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
    def each_active(self, held: Held) -> Iterator[tuple[Value, Value | None]]:
        """A loop over the places of what is not zero; with its number, unless all are 0 or 1."""
        places, count = self.listed(held)
        with self.code.loop(0, count) as k:
            i = places[k].to(LONG)
            yield i, None if held.truths else self.numbers(held)[i]

    def add_rows(self, held: Held, rows: Tensor, out: Pointer, bias: Pointer | None = None) -> None:
        """``out = sum_i x_i rows[i] + bias`` over what is not zero, in rising order, the bias last.

        `rows` are ``[inputs, outputs]``. Sums are taken a chunk of outputs at a time; the weights of a chunk
        lie together.
        """
        element, size = self.number.element, rows.shape[1]
        zero, chunk = self.code.constant(0, element), CHUNK * 4 // element.size
        for first in range(0, size, chunk):
            width = min(chunk, size - first)
            weights = self.constant(rows[:, first : first + width])
            parts = [(at, n, self.code.variable(spread(zero, n))) for at, n in parts_of(width)]
            with self.each_active(held) as (i, x):
                row = weights + i * width
                for at, vector_width, total in parts:
                    total.value = total.value + times((row + at).load(vector_width), x)
            for at, vector_width, total in parts:
                value, place = total.value, first + at
                (out + place).store(value if bias is None else value + (bias + place).load(vector_width))

    def accumulate(self, target: Pointer, row: Pointer, count: int, x: Value | None) -> None:
        """``target += x row``, of `count` numbers."""
        for at, vector_width in parts_of(count):
            place = target + at
            place.store(place.load(vector_width) + times((row + at).load(vector_width), x))

    def ordered(self, held: Held, places: Tensor) -> Held:
        """The same value, with its numbers as `places` says."""
        if torch.equal(held.places, places):
            return held
        found = torch.empty_like(places)
        found[held.places] = torch.arange(len(places), dtype=torch.int64, device="cpu")
        source, order = self.numbers(held), self.indices(found[places])
        target = self.temporary(held.node.size)
        with self.code.loop(0, held.node.size) as j:
            target[j] = source[order[j].to(LONG)]
        return Held(held.node, places, target, truths=held.truths)

    def image(self, held: Held, shape: tuple[int, ...]) -> tuple[Held, bool]:
        """The same value as an image of `shape`, and whether channels are last in memory."""
        if torch.equal(held.places, channels_last(shape)):
            return held, True
        return self.ordered(held, torch.arange(held.node.size, dtype=torch.int64, device="cpu")), False


def spread(value: Value, vector_width: int) -> Value:
    """`value` in each of so many lanes."""
    return value if vector_width == 1 else value.spread(vector_width)


def times(row: Value, x: Value | None) -> Value:
    """`row` times a number, where there is one."""
    return row if x is None else spread(x, row.type.width) * row


def parts_of(count: int) -> list[tuple[int, int]]:
    """Vectors that cover `count` elements, the longest first: where each begins, and its width."""
    vector_width = [CHUNK] * (count // CHUNK) + [1 << b for b in reversed(range(6)) if count % CHUNK & 1 << b]
    return list(zip(accumulate([0, *vector_width]), vector_width, strict=False))
