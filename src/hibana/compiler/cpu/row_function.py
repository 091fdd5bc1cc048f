"""Functions of one row of neurons, which compute the values of a step block by block.

A block is a vector of 32 neurons; a truth value is a bit of its mask. No instruction has fast-math flags, so
LLVM neither contracts nor reorders operations, and the results are those of IEEE 754.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hibana.compiler.cpu.draws import Draws
from hibana.compiler.cpu.vector_math import IN_BLOCK, poisson
from hibana.compiler.graph import step as graph
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Operation, Unsupported
from hibana.compiler.graph.passes import Stores, leaves
from hibana.runtime.kernels import (
    BIT,
    LONG,
    Bytes,
    Code,
    Doubles,
    Floats,
    Function,
    Ints,
    Kind,
    Pointer,
    Type,
    Value,
    function,
)

VECTOR = 32
"""Neurons in a block: their numbers fill two AVX-512 registers, their truth values one integer."""

MASK = BIT.of(VECTOR)

OCTETS = VECTOR // 8
"""Bytes of the truth values of a block."""

LINE = 64
"""Bytes of a cache line."""

AHEAD = 512
"""Distance of prefetches from a block, in bytes. Without prefetches a training step of a recurrent network
takes 1.12 to 1.16 of the time, inference of a SEW ResNet 1.04 to 1.07 (Intel Xeon)."""

NUMBERS: dict[torch.dtype, type[Pointer]] = {torch.float32: Floats, torch.float64: Doubles}
"""The pointer type of numbers, by the dtype that a kernel computes in."""

IN_LOOP = 1
"""The data of an ``exp`` of float32 that is computed within the loop instead of by a vector function."""


@dataclass(frozen=True)
class _Row:
    """The function of a row while it is written."""

    code: Code
    stores: Stores
    """The rows to write, and their values."""
    rows: Mapping[Leaf, Pointer]
    """The addresses of rows of numbers or, as bytes, of bits."""
    element: Type
    """The type of a number."""
    scalars: Mapping[Leaf, Value]
    """The vectors of the scalar leaves."""
    draws: Draws | None
    """The random numbers of the row."""
    sequences: frozenset[Leaf]
    """The rows of sequences, which are prefetched."""
    streamed: frozenset[Leaf]
    """The rows whose numbers are written by non-temporal stores, aligned to cache lines."""

    def write_block(self, index: Value, valid: Value | None) -> None:
        """Computes all results for the block of neurons from `index` on.

        Args:
            index: the index of the block's first neuron in the row.
            valid: a mask of the lanes that belong to the row; None: the block is full, and later blocks of
                sequences are prefetched.
        """
        block = _Block(self, index, valid)
        read = leaves(self.stores)
        later: list[tuple[Leaf, Value]] = []
        for leaf, value in self.stores.items():
            result = block.of(value)
            if leaf in read:  # stored after all results have been computed from the old numbers
                later.append((leaf, result))
                continue
            nontemporal = leaf in self.streamed and valid is None
            if leaf in block.ahead and not (nontemporal or value.boolean):
                block.prefetch(leaf, to_write=True)
            block.store(leaf, result, nontemporal=nontemporal)
        for leaf, result in later:
            block.store(leaf, result, nontemporal=False)


class _Block(Analysis[Value]):
    """Writes the code for one block of 32 neurons: loads leaves, computes values, stores results."""

    def __init__(self, row: _Row, index: Value, valid: Value | None) -> None:
        """For the arguments see :meth:`_Row.write_block`."""
        super().__init__()
        self.row, self.code = row, row.code
        self.ahead = row.sequences if valid is None else frozenset[Leaf]()
        """The rows whose later blocks are prefetched."""
        self.vector = row.element.of(VECTOR)
        self.index = index
        self.octet = index >> 3
        self.valid = valid
        self.valid_octets = None if valid is None else valid.word().octets().differs(0)
        """A mask of the bytes of bits that belong to the row; None: the block is full."""
        self.addresses: dict[Leaf, Pointer] = {}

    def address(self, leaf: Leaf) -> Pointer:
        """The address of the block in the row `leaf`."""
        address = self.addresses.get(leaf)
        if address is None:
            row = self.row.rows[leaf]
            address = self.addresses[leaf] = row + (self.octet if isinstance(row, Bytes) else self.index)
        return address

    def prefetch(self, leaf: Leaf, *, to_write: bool) -> None:
        """Prefetches a later block of the row `leaf`."""
        address = self.address(leaf)
        for line in range(AHEAD, AHEAD + VECTOR * self.vector.size, LINE):
            address.bytes(line).prefetch(to_write=to_write)

    def store(self, leaf: Leaf, value: Value, *, nontemporal: bool) -> None:
        """Stores `value` in the row `leaf`: numbers as they are, truth values as one bit each.

        Only the lanes in `self.valid` are written, or all if it is None.
        """
        address = self.address(leaf)
        if not isinstance(address, Bytes):
            address.store(value, self.valid, LINE if nontemporal else 0, nontemporal=nontemporal)
        elif self.valid is None:
            address.of(Ints).store(value.word(), align=1)
        else:
            address.store((value & self.valid).word().octets(), self.valid_octets)

    def on_number(self, value: graph.Value) -> Value:
        """A vector of the number `value`."""
        return self.code.constant(float(value.data), self.vector)

    def on_scalar(self, value: graph.Value) -> Value:
        """A vector of the scalar argument `value`."""
        return self.row.scalars[value.leaf]

    def on_draw(self, value: graph.Value) -> Value:
        """The block's random numbers of the draw `value`."""
        assert self.row.draws is not None
        return self.row.draws.numbers(value.leaf, self.row.element, self.index)

    def on_row(self, value: graph.Value) -> Value:
        """The block's numbers in the row `value`; prefetches a later block if the row is in `ahead`."""
        if value.leaf in self.ahead:
            self.prefetch(value.leaf, to_write=False)
        return self.on_bits(value)

    def on_bits(self, value: graph.Value) -> Value:
        """The part of the row called `value` in this block: numbers, or the mask of a row of bits.

        A row of bytes holds one bit for each neuron. At the end of a row only valid neurons are read.
        """
        address = self.address(value.leaf)
        if not isinstance(address, Bytes):
            return address.load(VECTOR, self.valid)
        if self.valid_octets is None:
            return address.of(Ints).load(align=1).mask(VECTOR)
        return address.load(OCTETS, self.valid_octets).word().mask(VECTOR)

    def operation(self, value: graph.Value, row: Operation, args: list[Value]) -> Value:
        """The result of an operation on `args`. Raises Unsupported if kernels have no function for it."""
        if value.op == "poisson":
            return poisson(self.code, *args)
        if value.op == "to_float":
            return args[0].select(self.code.constant(1, self.vector), 0)
        if value.op not in IN_BLOCK:
            raise Unsupported(f"kernels of the CPU have no operation {value.op!r}")
        return IN_BLOCK[value.op](*args)


def row_function(
    name: str,
    stores: Stores,
    number: type[Pointer],
    *,
    short: bool,
    aligned: bool,
    sequences: frozenset[Leaf],
    nontemporal: bool,
) -> tuple[Function, list[Leaf], list[Leaf], bool]:
    """An LLVM function that computes `stores` for a row of neurons, in blocks of 32.

    It takes the addresses of rows, scalars, and the number of neurons ``n``.

    Args:
        name: the name of the function.
        stores: the rows to write, and their values.
        number: the pointer type of numbers.
        short: whether all blocks run through the masked code, which is a third of the instructions.
        aligned: whether the number of the first neuron is a multiple of :data:`VECTOR`.
        sequences: the rows of sequences, which are prefetched.
        nontemporal: whether rows of numbers of sequences are written by non-temporal stores.

    Returns:
        The function, its rows, its scalars, and whether it draws random numbers. If
        it does, it also takes the seed, the step, and the number of the first neuron.
    """
    inputs = leaves(stores)
    scalars = [leaf for leaf, value in inputs.items() if value.is_scalar]
    drawn = [leaf for leaf, value in inputs.items() if value.is_draw]
    rows: dict[Leaf, type[Pointer]] = {
        leaf: Bytes if value.boolean else number
        for leaf, value in (inputs | stores).items()
        if leaf not in scalars and leaf not in drawn
    }

    streamed = sequences if nontemporal else frozenset()

    def write(code: Code, n: Value, **arguments: Any) -> None:
        """Writes the function: full blocks, then the remaining neurons."""
        vectors = {leaf: arguments[str(leaf)].spread(VECTOR) for leaf in scalars}
        draw_arguments = {name: arguments[name] for name in _DRAW_ARGUMENTS} if drawn else {}
        draws = Draws(code, drawn, VECTOR, aligned=aligned, **draw_arguments) if drawn else None
        addresses = {leaf: arguments[str(leaf)] for leaf in rows}
        row = _Row(code, stores, addresses, number.element, vectors, draws, sequences, streamed)
        if short:
            with code.loop(0, n, VECTOR) as index:
                row.write_block(index, code.first_lanes((n - index).smaller(VECTOR), VECTOR))
            return
        for index, valid in code.vectors(n, VECTOR):
            row.write_block(index, valid)

    kinds: dict[str, Kind] = {str(leaf): kind for leaf, kind in rows.items()}
    kinds |= dict.fromkeys(map(str, scalars), number.element) | {"n": LONG}
    if drawn:
        kinds |= dict.fromkeys(_DRAW_ARGUMENTS, LONG)
    return function(name, write, kinds), list(rows), scalars, bool(drawn)


_DRAW_ARGUMENTS = ("seed", "time", "first")
"""The seed of the call, the step, and the number of the row's first neuron."""
