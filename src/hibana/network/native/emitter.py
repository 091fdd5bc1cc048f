"""The code of a native step of one sample under construction: memory, and loops that layers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.row_function import NUMBERS
from hibana.compiler.cpu.row_pass import row_pass
from hibana.compiler.cpu.vector_functions import vector_functions
from hibana.compiler.graph.leaf import OUTPUT, Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, leaves, substitute
from hibana.compiler.graph.step import Value as GraphValue
from hibana.network.lowering import CHUNK, Activations, Lowering, StateArray, spread, times, vector_parts
from hibana.network.native.state import pack_bits
from hibana.network.neurons import NeuronLayer
from hibana.network.node import Node
from hibana.runtime.code import LINE
from hibana.runtime.kernels import INT, LONG, Bytes, Code, Ints, Longs, Pointer, Value
from hibana.runtime.loops import Result

__all__ = ["Block", "Emitter", "PackedRows"]


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

    number: type[Pointer]
    inputs: int
    chunks: tuple[tuple[int, int, int], ...]
    """The first output, the number of outputs, and the offset of the rows in bytes, of each chunk."""
    bias: int | None
    """Offset in bytes."""

    def with_bias(self, sums: Value, weights: Pointer, first: int) -> Value:
        """`sums` of the outputs from `first` on, plus their bias (if any); `weights` is the block."""
        if self.bias is None:
            return sums
        bias = (weights + self.bias).of(self.number)
        return sums + (bias + first).load(sums.type.width)


class Emitter(Lowering):
    """Writes a function that computes one step of one sample.

    Constants, state, the results of static layers, and scratch memory are blocks, whose addresses are
    `blocks` by name. The code contains the offsets of arrays in them.
    """

    target, packs_spikes, vector_width = "native", True, 32

    def __init__(self, code: Code, dtype: torch.dtype, blocks: dict[str, Any]) -> None:
        self.code, self.dtype = code, dtype
        self.number = NUMBERS[dtype]
        self._state_block: Bytes = blocks["state"]
        self._weights_block: Bytes = blocks["weights"]
        self._function_table: Longs = blocks["functions"]
        self._temporary_blocks: dict[bool, Bytes] = {True: blocks["results"], False: blocks["scratch"]}
        self.weights, self.initial_state, self.results, self.scratch = (Block() for _ in range(4))
        self.is_static = True
        """Whether temporary arrays are results of static layers, which later steps may read."""
        self.arrays: list[StateArray] = []
        self.functions: list[int] = []
        """Addresses of the vector functions that the code calls."""
        self.activations: dict[Node, Activations] = {}
        self.packed: dict[Node, PackedRows] = {}
        """The weights of linear layers."""
        self._passes = 0
        """Number of calls of :meth:`compute`."""
        self._offsets: dict[Result, int] = {}
        """The offset of each temporary array in its block, by the text of its pointer."""

    def constant(self, values: Tensor, name: str = "") -> Pointer:
        """Adds `values` to the constants; a pointer to them."""
        return (self._weights_block + self.weights.add(values.to(self.dtype))).of(self.number)

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
        offset = (self.results if self.is_static else self.scratch).reserve(count * kind.element.size)
        pointer = (self._temporary_blocks[self.is_static] + offset).of(kind)
        self._offsets[pointer.term] = offset
        return pointer

    def offset(self, temporary: Pointer) -> int:
        """The offset in its block, in bytes, of an array that :meth:`temporary` returned."""
        return self._offsets[temporary.term]

    def state(self, array: StateArray, initial: Tensor) -> Bytes:
        """Adds an array to the state, with the values `initial`; a pointer to it."""
        offset = self.initial_state.add(pack_bits(initial) if array.kind == "bits" else initial)
        self.arrays.append(replace(array, offset=offset))
        return self._state_block + offset

    def numbers(self, activations: Activations) -> Pointer:
        """The array of the numbers of `activations`, expanded from their bits if necessary."""
        if activations.numbers is None:
            numbers = activations.numbers = self.temporary(activations.node.size)
            for offset, width in self.vectors(activations.node.size):
                one = self.code.constant(1, self.number.element.of(width))
                (numbers + offset).store(self._is_nonzero(activations, offset, width).select(one, 0))
        return activations.numbers

    def _is_nonzero(self, activations: Activations, offset: Any, width: int) -> Value:
        """Whether each of `width` numbers from `offset` on is not zero, as a vector of booleans."""
        if activations.bits is None:
            numbers: Value = (self.numbers(activations) + offset).load(width)
            return numbers.differs(0)
        if isinstance(offset, Value):  # a multiple of a vector
            word = activations.bits.of(Ints)[offset // self.vector_width]
        else:
            word = activations.bits.of(Longs)[offset // 64] >> (offset % 64)
        return word.mask(width)

    def _words(self, activations: Activations) -> Iterator[tuple[Any, Value]]:
        """Yields offsets, and words whose bits tell which numbers from there on are not zero.

        Spikes that are bits already are read in words of 64: half as many loops over the bits of a word.
        """
        size, bits = activations.node.size, activations.bits
        full_words = 0 if bits is None else size - size % 64
        if bits is not None and full_words:
            with self.code.loop(0, full_words, 64) as offset:
                yield offset, bits.of(Longs)[offset // 64]
        for offset, width in self.vectors(size - full_words):
            yield (
                offset + full_words,
                self._is_nonzero(activations, offset + full_words, width).word().to(LONG),
            )

    def _list_nonzero(self, activations: Activations) -> tuple[Pointer, Value]:
        """The address of a list of the indices of the nonzero numbers, and its length.

        The first call for these `activations` adds the loop that fills the list.
        """
        if activations.nonzero is None:
            count, places = self.code.variable(0), self.temporary(activations.node.size, Ints).of(Ints)
            for offset, word in self._words(activations):
                with self.code.each_bit(word) as bit:
                    end = count.value
                    places[end] = (bit + offset).to(INT)
                    count.value = end + 1
            activations.nonzero = places, count.value
        return activations.nonzero

    @contextmanager
    def each_nonzero(self, activations: Activations) -> Iterator[tuple[Value, Value | None]]:
        """Writes a loop over nonzero values; yields the index and, unless all values are 1, the value."""
        places, count = self._list_nonzero(activations)
        with self.code.loop(0, count) as k:
            i = places[k].to(LONG)
            yield i, None if activations.binary else self.numbers(activations)[i]

    def product(
        self,
        node: Node,
        inputs: Activations,
        weights: Tensor,
        bias: Tensor | None,
        out: Pointer,
        name: str = "",
    ) -> None:
        """Writes a loop over the nonzero inputs for each chunk of outputs, whose sums stay in registers."""
        packed = self.packed[node] = self._pack(weights, bias)
        zero = self.code.constant(0, self.number.element)
        for first, width, offset in packed.chunks:
            rows = (self._weights_block + offset).of(self.number)
            totals = [(offset, n, self.code.variable(spread(zero, n))) for offset, n in vector_parts(width)]
            with self.each_nonzero(inputs) as (i, x):
                row = rows + i * width
                for offset, n, total in totals:
                    total.value = total.value + times((row + offset).load(n), x)
            for offset, _, total in totals:
                sums = packed.with_bias(total.value, self._weights_block, first + offset)
                (out + (first + offset)).store(sums)

    def _pack(self, rows: Tensor, bias: Tensor | None) -> PackedRows:
        """Adds `rows` ``[inputs, outputs]`` to the constants, the weights of a chunk of outputs together."""
        inputs, outputs = rows.shape
        size, chunks = CHUNK * 4 // self.number.element.size, []
        for first in range(0, outputs, size):
            width = min(size, outputs - first)
            chunks.append((first, width, self.weights.add(rows[:, first : first + width].to(self.dtype))))
        bias_offset = None if bias is None else self.weights.add(bias.to(self.dtype))
        return PackedRows(self.number, inputs, tuple(chunks), bias_offset)

    def compute(self, layer: NeuronLayer, stores: Stores, rows: dict[Leaf, Pointer]) -> None:
        """Writes the functions of rows that the compiler generates for `stores`, and their calls."""
        step, code, size = layer.step, self.code, layer.node.size
        try:
            functions = vector_functions(step, self.dtype)
        except Unsupported as error:
            raise Unsupported(f"layer {layer.node.name!r}: {error}") from error
        before = GraphValue("row", leaf=OUTPUT)
        if isinstance(rows[OUTPUT], Bytes):
            before = GraphValue("to_float", (GraphValue("bits", leaf=OUTPUT),))
            stores = {leaf: value.args[0] if leaf == OUTPUT else value for leaf, value in stores.items()}
        if (emitted := leaves(stores).get(step.carried[-1])) is not None:  # the step overwrites this row
            stores = substitute(stores, {emitted: before})
        self._passes += 1
        neurons_pass = row_pass(f"neurons{self._passes}", stores, self.number, frozenset(functions))
        rows = rows | {leaf: self.temporary(size) for leaf in neurons_pass.scratch}
        for leaf, value in neurons_pass.leaves.items():
            if value.is_row and leaf not in rows:
                values = layer.parameters[leaf.index]
                rows[leaf] = self.constant(values.repeat(size // len(values)))
        constants = self.constant(torch.tensor(step.constants, dtype=torch.float64, device="cpu"))
        scalars = scalar_arguments(
            [neurons_pass], constants, lambda leaf: self.constant(layer.parameters[leaf.index])[0]
        )
        called = sorted(neurons_pass.operations & functions.keys())
        addresses = {op: self.function(functions[op]) for op in called}
        for call in neurons_pass.sequence:
            arguments = [rows[leaf] for leaf in call.rows]
            write_call(code, call, arguments, scalars, addresses, code.constant(size))
