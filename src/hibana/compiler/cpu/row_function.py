"""The operations of a step as LLVM instructions: functions of one row of neurons, block by block.

A block is a vector of 32 neurons, a truth value a bit of its mask. Nothing is contracted or reassociated: an
instruction without fast-math flags does what IEEE says.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hibana.compiler.cpu.draws import Block, Draws
from hibana.compiler.cpu.vector_math import exp_of_float32
from hibana.compiler.graph import step as graph
from hibana.compiler.graph.analysis import Analysis
from hibana.compiler.graph.ops import Operation, row_of
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
    Value,
    function,
)

VECTOR = 32
"""Neurons in a vector: two registers of AVX-512, and their truth values one integer."""

MASK = BIT.of(VECTOR)

OCTETS = VECTOR // 8

LINE = 64
"""Bytes of a line of a cache."""

AHEAD = 512
"""Bytes ahead of a block that are prefetched. Without it a training step of a recurrent network takes 1.12 to
1.16 of the time, inference of a SEW ResNet 1.04 to 1.07 (Intel Xeon)."""

NUMBERS: dict[str, type[Pointer]] = {"float32": Floats, "float64": Doubles}
"""The pointer type of each dtype that kernels compute in."""

IN_LOOP = "in loop"
"""The data of an ``exp`` of float32 that is computed within the loop, not by a function of rows."""

Rows = Mapping[str, Pointer]
"""The addresses of rows of numbers or, as bytes, of bits."""


class _Block(Analysis[Value]):
    """One block of neurons: reads leaves, computes values, stores results."""

    def __init__(
        self,
        code: Code,
        rows: Rows,
        number: type[Pointer],
        at: Value,
        count: Value | None,
        ahead: frozenset[str],
        names: Mapping[graph.Value, str],
        scalars: Mapping[str, Value],
        draws: Draws | None,
    ) -> None:
        super().__init__()
        self.code = code
        self.rows = rows
        self.ahead = ahead
        self.names = names
        """The names of results in the code."""
        self.scalars = scalars
        self.drawn: Block | None = draws.block(at) if draws else None
        self.element = number.element
        self.vector = self.element.of(VECTOR)
        self.at = at
        self.octet = at >> 3
        self.there = self.octets_there = None
        if count is not None:
            self.there = code.lane_indices(LONG.of(VECTOR)) < count.spread(VECTOR)
            self.octets_there = code.lane_indices(LONG.of(OCTETS)) * 8 < count.spread(OCTETS)
        self.places: dict[str, Pointer] = {}
        vector = self.vector
        self.types = {"V": str(vector), "T": vector.element, "M": str(MASK), "K": vector.mangled}

    def place(self, name: str) -> Pointer:
        """The address of the block in the row `name`."""
        if name not in self.places:
            row = self.rows[name]
            self.places[name] = row + (self.octet if isinstance(row, Bytes) else self.at)
        return self.places[name]

    def fetch(self, name: str, *, to_write: bool) -> None:
        """Prefetches a later block of the row `name`."""
        for line in range(AHEAD, AHEAD + VECTOR * self.vector.size, LINE):
            self.place(name).bytes(line).prefetch(to_write=to_write)

    def store(self, name: str, value: Value, *, nontemporal: bool) -> None:
        place = self.place(name)
        if not isinstance(place, Bytes):
            place.store(value, self.there, LINE if nontemporal else 0, nontemporal=nontemporal)
        elif self.there is None:
            place.of(Ints).store(value.word(), align=1)
        else:
            place.store((value & self.there).word().octets(), self.octets_there)

    def on_number(self, value: graph.Value) -> Value:
        return self.code.constant(float(value.data), self.vector)

    def on_scalar(self, value: graph.Value) -> Value:
        return self.scalars[str(value.data)]

    def on_draw(self, value: graph.Value) -> Value:
        assert self.drawn is not None
        return self.drawn.drawn(str(value.data), self.element)

    def on_row(self, value: graph.Value) -> Value:
        if str(value.data) in self.ahead:
            self.fetch(str(value.data), to_write=False)
        return self.on_bits(value)

    def on_bits(self, value: graph.Value) -> Value:
        place = self.place(str(value.data))
        if not isinstance(place, Bytes):
            return place.load(VECTOR, self.there)
        if self.octets_there is None:
            return place.of(Ints).load(align=1).mask(VECTOR)
        return place.load(OCTETS, self.octets_there).word().mask(VECTOR)

    def operation(self, value: graph.Value, row: Operation, args: list[Value]) -> Value:
        if value.data == IN_LOOP:
            return exp_of_float32(args[0])
        *before, last = row_of(row.name, "llvm").llvm
        texts, types, writer = [argument.text for argument in args], dict(self.types), self.code.writer
        for i, instruction in enumerate(before):
            types[f"t{i}"] = writer.let("", instruction.format(*texts, **types))
        text = writer.let(self.names.get(value, ""), last.format(*texts, **types))
        return Value(writer, MASK if value.boolean else self.vector, text)


def row_function(
    name: str,
    stores: Stores,
    number: type[Pointer],
    *,
    short: bool,
    aligned: bool,
    nontemporal: frozenset[str],
    ahead: frozenset[str],
) -> tuple[Function, list[str], list[str], bool]:
    """A function that computes `stores` for `n` neurons, the last `in_reverse` of them last to first.

    Returns it with the names of its rows and scalars, and whether it draws random numbers: then it takes the
    seed, the step and the number of the first neuron, too, a multiple of a vector's if rows are `aligned`. If
    `short`, all blocks run through the masked code: a third of the instructions.
    """
    read = leaves(stores)
    scalars = [name for name, leaf in read.items() if leaf.is_scalar]
    drawn = [name for name, leaf in read.items() if leaf.is_draw]
    rows: dict[str, type[Pointer]] = {
        name: Bytes if value.boolean else number
        for name, value in (read | stores).items()
        if name not in scalars and name not in drawn
    }

    def write(code: Code, n: Value, in_reverse: Value, **given: Any) -> None:
        standing = {s: given[_plain(s)].spread(VECTOR) for s in scalars}
        of = {name: given[name] for name in _DRAWN} if drawn else {}
        draws = Draws(code, drawn, VECTOR, aligned=aligned, **of) if drawn else None
        block = partial(_block, code, stores, given, standing, draws, number)
        if short:
            with code.loop(0, n, VECTOR) as at:
                block(at, n - at)
            return
        whole = n & -VECTOR
        turn = (whole - in_reverse).larger(0)
        with code.loop(0, turn, VECTOR) as at:
            block(at, nontemporal=nontemporal, ahead=ahead)
        with code.loop(0, whole - turn, VECTOR) as back:
            block(whole - VECTOR - back, nontemporal=nontemporal)
        left = n - whole
        with code.when(left.differs(0)):
            block(whole, left)

    kinds: dict[str, Kind] = {**rows, **dict.fromkeys(map(_plain, scalars), number.element)}
    kinds |= {"n": LONG, "in_reverse": LONG}
    if drawn:
        kinds |= dict.fromkeys(_DRAWN, LONG)
    return function(name, write, kinds), list(rows), scalars, bool(drawn)


_DRAWN = ("seed", "time", "first")
"""What random numbers are drawn from: the seed of the call, the step, the number of the first neuron."""


def _plain(scalar: str) -> str:
    """``c[0]`` as a name."""
    return scalar.replace("[", ".").replace("]", "")


def _block(
    code: Code,
    stores: Stores,
    rows: Rows,
    scalars: Mapping[str, Value],
    draws: Draws | None,
    number: type[Pointer],
    at: Value,
    count: Value | None = None,
    *,
    nontemporal: frozenset[str] = frozenset(),
    ahead: frozenset[str] = frozenset(),
) -> None:
    """Computes `stores` for the block of neurons at index `at`.

    Args:
        code: the function that is written.
        stores: the rows to write, and their values.
        rows: the addresses of these and of the rows that are read.
        scalars: the vectors of the scalar leaves.
        draws: the random numbers, if there are any.
        number: the pointer type of numbers.
        at: the index of the block's first neuron.
        count: how many neurons the block has, if it is not whole.
        nontemporal: the rows that are written by non-temporal stores, aligned to cache lines.
        ahead: the rows that are prefetched.
    """
    names: dict[graph.Value, str] = {}
    for name, value in stores.items():
        names.setdefault(value, f"{name}.{at.text[1:]}")
    block = _Block(code, rows, number, at, count, ahead, names, scalars, draws)
    rewritten = leaves(stores)
    for name, value in stores.items():
        result = block.of(value)
        if name not in rewritten:
            if name in ahead - nontemporal and not value.boolean:
                block.fetch(name, to_write=True)
            block.store(name, result, nontemporal=name in nontemporal)
    for name, value in stores.items():
        if name in rewritten:
            block.store(name, block.of(value), nontemporal=name in nontemporal)
