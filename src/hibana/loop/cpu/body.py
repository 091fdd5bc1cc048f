"""The operations of a step as LLVM's instructions, and the few statements that a kernel is written with.

LLVM's own language says what a compiler would else have to find: that 32 neurons are one value, that a truth
value is a bit of a mask, and that what one step leaves to the next need not pass through memory. Nothing is
contracted or reassociated: an instruction without flags does what IEEE says.
"""

from collections.abc import Mapping

import torch

from hibana.loop.graph import step as graph
from hibana.loop.graph.ops import row_of
from hibana.loop.graph.passes import Stores, leaves
from hibana.loop.graph.plan import evaluated
from hibana.native import (
    FLOAT,
    INT,
    LONG,
    Code,
    Doubles,
    Floats,
    Function,
    Pointer,
    Type,
    Value,
    Writer,
    declared,
    function,
    named,
)

__all__ = [
    "LANES",
    "LINE",
    "NUMBERS",
    "SIZE",
    "Writer",
    "body",
    "libm_function",
    "libm_row",
    "named",
    "splat",
]

LANES = 32
"""Neurons in one value: two registers of AVX-512. A multiple of 8, so that their bits are whole bytes."""

LINE = 64
"""Bytes of a line of a cache."""

AHEAD = 512
"""Bytes ahead of a block from which memory is fetched: the processor's own guesses end at every few rows."""

SIZE = {"float": 4, "double": 8}
"""Bytes of a number."""

_MASK = f"<{LANES} x i1>"


class _Block:
    """One block of neurons: every leaf read once, each value computed once, then everything stored."""

    def __init__(self, writer: Writer, real: str, at: str, masked: str = "") -> None:
        self.writer = writer
        self.real = real
        self.vector = f"<{LANES} x {real}>"
        self.at = at
        self.masked = masked
        """How many neurons there are, where they are fewer than a block."""
        self.places: dict[str, str] = {}
        if masked:
            self._masks(masked)

    def _masks(self, count: str) -> None:
        lanes = ", ".join(f"i64 {i}" for i in range(LANES))
        all_ = splat(self.writer, "i64", count, LANES)
        self.there = self.writer.let("there", f"icmp slt <{LANES} x i64> <{lanes}>, {all_}")
        octets = ", ".join(f"i64 {i}" for i in range(0, LANES, 8))
        some = splat(self.writer, "i64", count, LANES // 8)
        self.bytes_there = self.writer.let("bytes_there", f"icmp slt <{LANES // 8} x i64> <{octets}>, {some}")

    def place(self, name: str, *, bits: bool = False) -> str:
        """The address of the block in the row `name`."""
        if name not in self.places:
            kind, at = ("i8", f"{self.at}.octet") if bits else (self.real, self.at)
            self.places[name] = self.writer.row("", kind, named(name), at)
        return self.places[name]

    def read(self, leaf: graph.Value) -> str:
        name = str(leaf.data)
        place = self.place(name, bits=leaf.op == "bits")
        if leaf.op == "bits":
            bits = f"<{LANES // 8} x i8>"
            if self.masked:
                call = (
                    f"call {bits} @llvm.masked.load.v{LANES // 8}i8.p0(ptr {place}, i32 1, "
                    f"<{LANES // 8} x i1> {self.bytes_there}, {bits} zeroinitializer)"
                )
                return self.writer.let("", f"bitcast {bits} {self.writer.let('', call)} to {_MASK}")
            word = self.writer.let("", f"load i{LANES}, ptr {place}, align 1")
            return self.writer.let("", f"bitcast i{LANES} {word} to {_MASK}")
        if self.masked:
            return self.writer.let(
                f"{name}.{self.at[1:]}",
                f"call {self.vector} @llvm.masked.load.{self._kind()}.p0(ptr {place}, i32 {SIZE[self.real]}, "
                f"{_MASK} {self.there}, {self.vector} zeroinitializer)",
            )
        return self.writer.let(
            f"{name}.{self.at[1:]}", f"load {self.vector}, ptr {place}, align {SIZE[self.real]}"
        )

    def fetch(self, name: str, *, to_write: bool) -> None:
        """Asks for the lines of a block that comes later in the row `name`."""
        place = self.place(name)
        for line in range(AHEAD, AHEAD + LANES * SIZE[self.real], LINE):
            later = self.writer.row("", "i8", place, str(line))
            self.writer.do(f"call void @llvm.prefetch.p0(ptr {later}, i32 {int(to_write)}, i32 3, i32 1)")

    def store(self, name: str, value: graph.Value, said: str, *, nontemporal: bool) -> None:
        place = self.place(name, bits=value.boolean)
        if value.boolean:
            bits = f"<{LANES // 8} x i8>"
            if self.masked:
                mine = self.writer.let("", f"and {_MASK} {said}, {self.there}")
                word = self.writer.let("", f"bitcast {_MASK} {mine} to {bits}")
                self.writer.do(
                    f"call void @llvm.masked.store.v{LANES // 8}i8.p0({bits} {word}, ptr {place}, i32 1, "
                    f"<{LANES // 8} x i1> {self.bytes_there})"
                )
            else:
                word = self.writer.let("", f"bitcast {_MASK} {said} to i{LANES}")
                self.writer.do(f"store i{LANES} {word}, ptr {place}, align 1")
            return
        if self.masked:
            self.writer.do(
                f"call void @llvm.masked.store.{self._kind()}.p0({self.vector} {said}, "
                f"ptr {place}, i32 {SIZE[self.real]}, {_MASK} {self.there})"
            )
        elif nontemporal:
            self.writer.do(f"store {self.vector} {said}, ptr {place}, align {LINE}, !nontemporal !0")
        else:
            self.writer.do(f"store {self.vector} {said}, ptr {place}, align {SIZE[self.real]}")

    def compute(self, value: graph.Value, arguments: list[str], name: str) -> str:
        op = value.op
        if op == "number":
            return f"splat ({self.real} {float(value.data)})"
        *before, last = row_of(op, "llvm").llvm
        types = {"V": self.vector, "T": self.real, "M": _MASK, "K": self._kind()}
        for i, instruction in enumerate(before):
            types[f"t{i}"] = self.writer.let("", instruction.format(*arguments, **types))
        return self.writer.let(name, last.format(*arguments, **types))

    def _kind(self) -> str:
        return f"v{LANES}f{32 if self.real == 'float' else 64}"


def splat(writer: Writer, kind: str, value: str, lanes: int) -> str:
    """A vector whose `lanes` are all `value`."""
    one = writer.let("", f"insertelement <{lanes} x {kind}> poison, {kind} {value}, i64 0")
    return writer.let(
        "",
        f"shufflevector <{lanes} x {kind}> {one}, <{lanes} x {kind}> poison, <{lanes} x i32> zeroinitializer",
    )


def body(
    writer: Writer,
    real: str,
    stores: Stores,
    scalars: Mapping[str, str],
    at: str,
    masked: str = "",
    nontemporal: frozenset[str] = frozenset(),
    ahead: frozenset[str] = frozenset(),
) -> None:
    """The lines that compute `stores` for the block of neurons at index `at`.

    Args:
        writer: where they go.
        real: LLVM's name of the number's type.
        stores: the rows to write, and their values.
        scalars: the vectors that stand for scalar leaves.
        at: the index of the block's first neuron; ``{at}.octet`` is that of its byte among the bits.
        masked: how many neurons the block has, if it is not a whole one.
        nontemporal: the rows that are written by non-temporal stores; they lie on whole lines of a cache.
        ahead: the rows that come from memory: what follows the block is asked for.
    """
    block = _Block(writer, real, at, masked)
    text: dict[graph.Value, str] = {}
    read: dict[str, str] = dict(scalars)
    names: dict[graph.Value, str] = {}
    for name, value in stores.items():
        names.setdefault(value, f"{name}.new.{at[1:]}")

    def computed(value: graph.Value) -> str:
        for one in evaluated([value], text):
            if one.op in ("row", "bits", "scalar"):
                name = str(one.data)
                if name not in read:
                    if name in ahead and one.op == "row":
                        block.fetch(name, to_write=False)
                    read[name] = block.read(one)
                text[one] = read[name]
            else:
                text[one] = block.compute(one, [text[a] for a in one.args], names.get(one, ""))
        return text[value]

    rewritten = leaves(stores)
    for name, value in stores.items():
        said = computed(value)
        if name not in rewritten:
            if name in ahead - nontemporal and not value.boolean:
                block.fetch(name, to_write=True)
            block.store(name, value, said, nontemporal=name in nontemporal)
    for name, value in stores.items():
        if name in rewritten:
            block.store(name, value, text[value], nontemporal=name in nontemporal)


NUMBERS: dict[torch.dtype, type[Pointer]] = {torch.float32: Floats, torch.float64: Doubles}
"""Of each dtype that kernels compute in, addresses of such numbers."""


def libm_function(op: str, number: Type) -> Function:
    """The C library's function of a number for `op`."""
    row = row_of(op, "libm")
    return declared(f"{row.libm}{'f' if number is FLOAT else ''}", number, *[number] * row.arity)


def libm_row(op: str, real: str) -> str:
    """A function that applies the C library's `op` to a row: what stands in for a vector function."""
    kind = {"float": Floats, "double": Doubles}[real]
    one = libm_function(op, kind.element)

    def body(code: Code, count: Value, source: Pointer, target: Pointer, mode: Value) -> None:
        with code.loop(0, count.signed_to(LONG)) as j:
            target[j] = one(code, source[j])

    row = function(f"{op}_row", body, {"count": INT, "source": kind, "target": kind, "mode": LONG})
    return "\n\n".join(row.texts)
