"""The code of a native step of one sample under construction: memory, and loops that layers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.lowering import Activations, Lowering, StateArray, spread, times
from hibana.network.native.neurons import write_neurons
from hibana.runtime.code import LINE
from hibana.runtime.kernels import INT, LONG, Bytes, Code, Doubles, Floats, Ints, Longs, Pointer, Value

__all__ = ["Block", "Emitter", "PackedRows", "vector_parts"]

VECTOR = 32
"""Numbers of a vector in element-wise loops."""
CHUNK = 64
"""Sums that stay in registers while rows are added: four registers of AVX-512, eight of AVX2."""


class Block:
    """A block of memory under construction: arrays one after the other, each on its own cache lines."""

    def __init__(self) -> None:
        self.size = 0
        """In bytes."""
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, values: Tensor) -> int:
        """Appends the bytes of `values`, and returns the offset of the first one."""
        flat = values.detach().resolve_neg().contiguous().flatten()
        offset = self.reserve(flat.numel() * flat.element_size())
        self._parts.append((offset, flat.view(torch.uint8)))
        return offset

    def reserve(self, size: int) -> int:
        """Appends `size` bytes of zeros, and returns the offset of the first one."""
        offset, self.size = self.size, self.size + -(-size // LINE) * LINE
        return offset

    def packed(self) -> Tensor:
        """The block, ``[size]`` bytes."""
        block = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        for offset, values in self._parts:
            block[offset : offset + len(values)] = values
        return block


@dataclass(frozen=True)
class PackedRows:
    """Rows of weights among the constants, in chunks of outputs, and a bias."""

    inputs: int
    chunks: tuple[tuple[int, int, int], ...]
    """The first output, the number of outputs, and the offset of the rows in bytes, of each chunk."""
    bias: int | None
    """Offset in bytes."""


class Emitter(Lowering):
    """Writes a function that computes layers of one step of one sample.

    Constants, state and scratch memory are blocks; the code contains the offsets of arrays in them. A second
    function of the same step adds to the constants and the state of `first_emitter`.
    """

    target = "native"

    def __init__(
        self, code: Code, dtype: torch.dtype, blocks: dict[str, Any], first_emitter: "Emitter | None" = None
    ) -> None:
        self.code, self.dtype = code, dtype
        self.number = self.number_pointer(dtype)
        self._state_block: Bytes = blocks["state"]
        self._weights_block: Bytes = blocks["weights"]
        self._scratch_block: Bytes = blocks["scratch"]
        self._function_table: Longs = blocks["functions"]
        self.scratch = Block()
        self.weights: Block = first_emitter.weights if first_emitter else Block()
        self.initial_state: Block = first_emitter.initial_state if first_emitter else Block()
        self.arrays: list[StateArray] = first_emitter.arrays if first_emitter else []
        self.functions: list[int] = first_emitter.functions if first_emitter else []
        """Addresses of the vector functions that the code calls."""
        self.activations: dict[Node, Activations] = {}
        self.packed: dict[Node, PackedRows] = {}
        """The weights of linear layers."""
        self._offsets: dict[str, int] = {}
        """The offset of each temporary array in scratch memory, by the text of its pointer."""

    @staticmethod
    def number_pointer(dtype: torch.dtype) -> type[Pointer]:
        """The pointer type of numbers of `dtype`."""
        return Doubles if dtype == torch.float64 else Floats

    def constant(self, values: Tensor, name: str = "") -> Pointer:
        """Adds `values` to the constants; a pointer to them."""
        return (self._weights_block + self._add_weights(values)).of(self.number)

    def _add_weights(self, values: Tensor) -> int:
        """Adds `values` to the constants, and returns their offset in bytes."""
        return self.weights.add(values.to(self.dtype))

    def indices(self, values: Tensor, name: str = "") -> Ints:
        """Stores `values` as ``int32`` in the block of weights, and returns a pointer to them.

        `name` is the array's name in C; native code has no names.
        """
        return (self._weights_block + self.weights.add(values.to(torch.int32))).of(Ints)

    def function(self, address: int) -> Pointer:
        """The vector function at `address`, loaded from the table of functions."""
        if address not in self.functions:
            self.functions.append(address)
        return Pointer.from_address(self._function_table[self.functions.index(address)])

    def bits(self, count: int) -> Bytes:
        """Scratch memory for `count` bits, rounded up to whole words of 64."""
        return self.temporary(-(-count // 64) * 8, Bytes).of(Bytes)

    def temporary(self, count: int, kind: type[Pointer] | None = None, *, binary: bool = False) -> Pointer:
        """Scratch memory for `count` elements of `kind`, by default numbers; `binary` is for C."""
        kind = kind or self.number
        offset = self.scratch.reserve(count * kind.element.size)
        pointer = (self._scratch_block + offset).of(kind)
        self._offsets[pointer.text] = offset
        return pointer

    def offset(self, temporary: Pointer) -> int:
        """The offset in scratch memory, in bytes, of an array that :meth:`temporary` returned."""
        return self._offsets[temporary.text]

    def state(self, array: StateArray, initial: Tensor) -> Bytes:
        """Adds an array to the state, with the values `initial`; a pointer to it."""
        offset = self.initial_state.add(initial)
        self.arrays.append(replace(array, offset=offset))
        return self._state_block + offset

    def vectors(self, count: int) -> Iterator[tuple[Any, int]]:
        """Yields the offset and width of each vector: in a loop, then for the remainder without a loop."""
        remainder = count % VECTOR
        if count > remainder:
            with self.code.loop(0, count - remainder, VECTOR) as offset:
                yield offset, VECTOR
        for first, width in vector_parts(remainder):
            yield count - remainder + first, width

    @contextmanager
    def registers(self, count: int) -> Iterator[list[tuple[Any, int]]]:
        """Yields the offsets and widths of vectors that cover `count` numbers, without a loop."""
        yield vector_parts(count)

    def numbers(self, activations: Activations) -> Pointer:
        """The array of the numbers of `activations`, expanded from their bits if necessary."""
        if activations.numbers is None:
            activations.numbers = self.temporary(activations.node.size)
            self.expand(activations, activations.numbers)
        return activations.numbers

    def expand(self, activations: Activations, target: Pointer) -> None:
        """Writes the bits of `activations` to `target`, as zeros and ones."""
        bits = activations.bits
        assert bits is not None
        for offset, width in self.vectors(activations.node.size):
            if isinstance(offset, Value):
                mask = bits.of(Ints)[offset // 32].mask(width)
            else:
                mask = (bits.of(Longs)[offset // 64] >> (offset % 64)).mask(width)
            one = self.code.constant(1, self.number.element.of(width))
            (target + offset).store(mask.select(one, 0))

    def _list_nonzero(self, activations: Activations) -> tuple[Pointer, Value]:
        """The address of a list of the indices of the nonzero numbers, and its length.

        The first call for these `activations` adds the loop that fills the list.
        """
        if activations.nonzero is None:
            size, count = activations.node.size, self.code.variable(0)
            places = self.temporary(size, Ints).of(Ints)

            def append(word: Value, first: Any) -> None:
                """Appends the positions of the set bits of `word`, plus `first`."""
                with self.code.each_bit(word) as bit:
                    end = count.value
                    places[end] = (bit + first).to(INT)
                    count.value = end + 1

            if activations.bits is not None:
                with self.code.loop(0, -(-size // 64)) as w:
                    append(activations.bits.of(Longs)[w], w * 64)
            else:
                numbers = self.numbers(activations)
                for offset, width in self.vectors(size):
                    append((numbers + offset).load(width).differs(0).word().to(LONG), offset)
            activations.nonzero = places, count.value
        return activations.nonzero

    @contextmanager
    def each_nonzero(self, activations: Activations) -> Iterator[tuple[Value, Value | None]]:
        """Writes a loop over nonzero values; yields the index and, unless all values are 1, the value."""
        places, count = self._list_nonzero(activations)
        with self.code.loop(0, count) as k:
            i = places[k].to(LONG)
            yield i, None if activations.binary else self.numbers(activations)[i]

    def pack(self, rows: Tensor, bias: Tensor | None = None) -> PackedRows:
        """Adds `rows` ``[inputs, outputs]`` to the constants, the weights of a chunk of outputs together."""
        inputs, outputs = rows.shape
        size, chunks = CHUNK * 4 // self.number.element.size, []
        for first in range(0, outputs, size):
            width = min(size, outputs - first)
            chunks.append((first, width, self._add_weights(rows[:, first : first + width])))
        return PackedRows(inputs, tuple(chunks), None if bias is None else self._add_weights(bias))

    def add_rows(self, inputs: Activations, packed: PackedRows, out: Pointer) -> None:
        """``out = sum_i x_i rows[i] + bias`` over nonzero inputs x, in rising order, the bias last."""
        zero = self.code.constant(0, self.number.element)
        for first, width, offset in packed.chunks:
            weights = (self._weights_block + offset).of(self.number)
            totals = [(offset, n, self.code.variable(spread(zero, n))) for offset, n in vector_parts(width)]
            with self.each_nonzero(inputs) as (i, x):
                row = weights + i * width
                for offset, n, total in totals:
                    total.value = total.value + times((row + offset).load(n), x)
            for offset, _, total in totals:
                (out + (first + offset)).store(self.with_bias(total.value, packed, first + offset))

    def with_bias(self, sums: Value, packed: PackedRows, first: int) -> Value:
        """`sums` of the outputs from `first` on, plus their bias if the layer has one."""
        if packed.bias is None:
            return sums
        bias = (self._weights_block + packed.bias).of(self.number)
        return sums + (bias + first).load(sums.type.width)

    def product(
        self, node: Node, inputs: Activations, weights: Tensor, bias: Tensor | None, out: Pointer
    ) -> None:
        """Writes the product of the inputs with the packed `weights`, plus `bias`, into `out`."""
        packed = self.packed[node] = self.pack(weights, bias)
        self.add_rows(inputs, packed, out)

    def neurons(self, node: Node, currents: Activations) -> Activations:
        """Writes one step of the neurons of `node` on `currents`, and returns their outputs."""
        return write_neurons(self, node, len(self.activations), currents)


def vector_parts(count: int, widest: int = CHUNK) -> list[tuple[int, int]]:
    """The offset and the width of vectors that cover `count` elements, the widest first.

    Widths are powers of two up to `widest`.
    """
    bits = reversed(range(widest.bit_length() - 1))
    widths = [widest] * (count // widest) + [1 << b for b in bits if count % widest & 1 << b]
    return list(zip(accumulate([0, *widths]), widths, strict=False))
