"""The schedule over samples: for steps that multiply by matrices, where a sample's neurons need one another.

Samples are independent of one another. A thread takes some of them at a time and runs all T steps over them;
their states, and the lists of their spikes, stay near. A step is cut at its products: what is pointwise goes
sample by sample through the same functions of rows as elsewhere (:mod:`hibana.loop.cpu.rows`), a product
takes all the samples at hand at once (:mod:`hibana.loop.cpu.product`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

from hibana.loop.cpu.body import SIZE, libm_row
from hibana.loop.cpu.parts import Moving, Parts
from hibana.loop.cpu.product import product, product_at
from hibana.loop.cpu.row_walk import ACCURATE, Source, own
from hibana.loop.cpu.rows import Call, Pass, plain
from hibana.loop.graph.ops import CALLS
from hibana.loop.graph.step import Step
from hibana.native import Doubles, Floats, Pointer, Writer, named

__all__ = ["SampleWalk"]

_SIZES = ("steps", "samples", "neurons", "padded", "together", "blocks", "blocks_each", "workspace_bytes")
_STRIDES = ("input_step", "grad_outputs_step", "row_bytes", "sample_bytes", "wants_first")
_KINDS: dict[str, type[Pointer]] = {"float": Floats, "double": Doubles}
_NUMBERS = frozenset((*_SIZES, *_STRIDES))


class SampleWalk:
    """A kernel over samples as it is written."""

    def __init__(
        self,
        name: str,
        step: Step,
        parts: Parts,
        calls: frozenset[str],
        carried: Sequence[str],
        edge: Mapping[str, str],
    ) -> None:
        self.name = name
        self.step = step
        self.parts = parts
        self.real = parts.real
        self.calls = calls
        self.edge = edge
        """For a leaf that is another one at time 0: the argument that is it there."""
        self.begun: Mapping[str, str] = {}
        """For a row that a step leaves to the next, the argument that it begins with; else it begins as 0."""
        self.ends: Mapping[str, str] = {}
        """And the argument that it ends in."""
        self.passes = parts.single()
        scratch = [row for pass_ in self.passes for row in (*pass_.scratch, *pass_.products)]
        self.own = list(dict.fromkeys([*carried, *scratch]))
        self.carried = carried
        self.rows = len(self.own)
        self.writer = Writer()
        self.loops = 0

    def source(self) -> Source:
        """The kernel and its functions, as a module."""
        writer = self.writer
        arguments = self._arguments()
        for i, name in enumerate(arguments):
            kind = "i64" if name in _NUMBERS else "ptr"
            writer.let(name, f"load {kind}, ptr {writer.row('', 'ptr', '%args', str(i))}")
        for name in dict.fromkeys(n for p in self.passes for call in p.does for n in call.scalars):
            array, _, index = name.rstrip("]").partition("[")
            place = writer.row("", self.real, "%constants" if array == "c" else f"%{array}_at", index)
            writer.let(plain(name), f"load {self.real}, ptr {place}")
        writer.let("step", "mul i64 %samples, %neurons")
        writer.let("bytes", f"mul i64 %neurons, {SIZE[self.real]}")
        with writer.loop("piece", "%begin", "%end") as piece:
            self._workspace(piece)
            first = writer.let("", f"mul i64 {piece}, %blocks_each")
            after = writer.let("", f"add i64 {first}, %blocks_each")
            last = writer.let("", f"call i64 @llvm.smin.i64(i64 {after}, i64 %blocks)")
            with writer.loop("block", first, last) as block:
                writer.let("sample", f"mul i64 {block}, %together")
                rest = writer.let("", "sub i64 %samples, %sample")
                writer.let("count", f"call i64 @llvm.smin.i64(i64 %together, i64 {rest})")
                self._begin()
                self._steps()
                self._end()
        writer.do("ret void")
        used = {op for pass_ in self.passes for op in pass_.called} - self.calls
        head = f"define void @{self.name}(i64 %begin, i64 %end, ptr %args) {{"
        text = [
            *(function for pass_ in self.passes for function in pass_.functions),
            *(text for made in (product, product_at) for text in made(_KINDS[self.real]).texts),
            "\n".join([head, *writer.lines, "}"]),
            *(libm_row(op, self.real) for op in sorted(used)),
        ]
        functions = {f"{op}_at": op for op in self._called()}
        return Source("\n\n".join(text) + "\n", tuple(arguments), functions)

    def _called(self) -> list[str]:
        """The operations whose functions the kernel is given."""
        return sorted({op for pass_ in self.passes for op in pass_.called} & self.calls)

    def _arguments(self) -> list[str]:
        read = {name for pass_ in self.passes for name in pass_.leaves}
        moving = [row.base for row in self.parts.moving.values()]
        tables = sorted(
            {f"m{_table(call)}_at" for p in self.passes for call in p.does if call.function == "product"}
        )
        return [
            *_SIZES,
            *_STRIDES,
            "workspace",
            *dict.fromkeys([*moving, *self.edge.values(), *self.begun.values(), *self.ends.values()]),
            *(f"p{i}_at" for i in range(self.step.parameters) if {f"p{i}", f"p{i}[0]"} & read),
            "constants",
            *tables,
            *(f"{op}_at" for op in self._called()),
        ]

    def _workspace(self, piece: str) -> None:
        """Names for a thread's own memory: rows, a row of zeros, lists, and bits that are all one or zero."""
        writer = self.writer
        skipped = writer.let("", f"mul i64 {piece}, %workspace_bytes")
        at = writer.row("", "i8", "%workspace", skipped)
        writer.do(f"call void @llvm.memset.p0.i64(ptr {at}, i8 0, i64 %workspace_bytes, i1 false)")
        numbers = writer.let("", "mul i64 %together, %padded")
        rows = writer.let("", f"mul i64 {numbers}, {SIZE[self.real]}")
        row = writer.let("", f"mul i64 %padded, {SIZE[self.real]}")
        octets = writer.let("bits_bytes", "lshr i64 %padded, 3")
        words = writer.let("", "mul i64 %together, 8")
        places = [(name, rows) for name in self.own]
        places += [("zeros", row), ("values", rows)]
        places += [("offsets", writer.let("", f"mul i64 {numbers}, 8")), ("counts", words)]
        places += [
            ("indices", writer.let("", "mul i64 %padded, 8")),
            ("all.bits", octets),
            ("no.bits", octets),
        ]
        for name, size in places:
            place = writer.let(own(name) if name in self.own else name, f"getelementptr i8, ptr {at}, i64 0")
            at = writer.row("", "i8", place, size)
        writer.do("call void @llvm.memset.p0.i64(ptr %all.bits, i8 -1, i64 %bits_bytes, i1 false)")

    @contextmanager
    def _each_sample(self) -> Iterator[tuple[str, str]]:
        """What is written meanwhile is done for each sample at hand: its number here, and in the batch."""
        self.loops += 1
        name = f"s{self.loops}"
        with self.writer.loop(name, "0", "%count") as s:
            yield s, self.writer.let(f"{name}.sample", f"add i64 %sample, {s}")

    def _begin(self) -> None:
        """Has what a step leaves to the next begin as it was given, or at zero."""
        writer = self.writer
        with self._each_sample() as (s, sample):
            for name in self.carried:
                row = self._own_row(name, s)
                begun = self._given(self.begun[name], sample) if name in self.begun else "%zeros"
                writer.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {row}, ptr {begun}, i64 %bytes, i1 false)")

    def _end(self) -> None:
        """Copies what was left to where it is wanted."""
        writer = self.writer
        for name, argument in self.ends.items():
            wanted = writer.let("", f"icmp ne ptr {named(argument)}, null")
            self.loops += 1
            with writer.when(f"ends{self.loops}", wanted), self._each_sample() as (s, sample):
                target = writer.row("", self.real, named(argument), self._first_of(sample))
                row = self._own_row(name, s)
                writer.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {row}, i64 %bytes, i1 false)")

    def _steps(self) -> None:
        writer, parts = self.writer, self.parts
        if self.name == "forward":
            if parts.edge_step is not None:
                self._do(parts.edge_step, "0", edge=True)
            with writer.loop("t", "1" if parts.edge_step else "0", "%steps") as t:
                self._inside(t)
            return
        most = writer.let("", "sub i64 %steps, 1")
        with writer.loop("done", "0", most if parts.edge_step else "%steps") as done:
            self._inside(writer.let("t", f"sub i64 {most}, {done}"))
        if parts.edge_step is not None:
            self._do(parts.edge_step, "0", edge=True)

    def _inside(self, t: str) -> None:
        if self.parts.before is not None:
            self._do(self.parts.before, t, edge=False)
        self._do(self.parts.step, t, edge=False)

    def _do(self, pass_: Pass, t: str, *, edge: bool) -> None:
        """The calls of a pass at step `t`: sample by sample, and products for all samples at once."""
        for products, calls in groupby(pass_.does, key=lambda call: call.function == "product"):
            if products:
                for call in calls:
                    self._product(call, t, edge=edge)
                continue
            with self._each_sample() as (s, sample):
                rows: dict[str, str] = {}
                for call in calls:
                    for name in call.rows:
                        if name not in rows:
                            rows[name] = self._row(name, t, s, sample, edge=edge)
                    self._call(call, [rows[name] for name in call.rows])

    def _row(self, name: str, t: str, s: str, sample: str, *, edge: bool) -> str:
        """The address of a sample's row, wherever rows of that name are."""
        writer = self.writer
        moving = self._moving(name)
        if moving is not None:
            row, when = moving
            base = self._at_step(row, t, when)
            if row.bits:
                return writer.row("", "i8", base, writer.let("", f"mul i64 {sample}, %sample_bytes"))
            return writer.row("", self.real, base, self._first_of(sample))
        if edge and name in self.edge:
            return self._given(self.edge[name], sample)
        if name in self.own:
            return self._own_row(name, s)
        return writer.row("", self.real, f"%{name}_at", self._first_of(sample))  # a parameter per neuron

    def _product(self, call: Call, t: str, *, edge: bool) -> None:
        writer = self.writer
        operand, *where, result = call.rows
        x, x_step = self._block(operand, t, edge=edge)
        table = f"%m{_table(call)}_at"
        y = f"{named(own(result))}"
        if not where:
            writer.do(
                f"call void @product(ptr {x}, i64 {x_step}, ptr {table}, ptr {y}, i64 %padded, i64 %count, "
                "i64 %neurons, i64 %padded, ptr %offsets, ptr %values, ptr %counts)"
            )
            return
        bits, bits_step = self._block(where[0], t, edge=edge, bits=True)
        writer.do(
            f"call void @product_at(ptr {x}, i64 {x_step}, ptr {table}, ptr {bits}, i64 {bits_step}, "
            f"ptr {y}, i64 %padded, i64 %count, i64 %neurons, i64 %padded, ptr %indices)"
        )

    def _block(self, name: str, t: str, *, edge: bool, bits: bool = False) -> tuple[str, str]:
        """Where the rows `name` of the samples at hand begin, and how far they are apart."""
        writer = self.writer
        moving = self._moving(name)
        if moving is not None:
            row, when = moving
            base = self._at_step(row, t, when)
            if row.bits:
                skipped = writer.let("", "mul i64 %sample, %sample_bytes")
                return writer.row("", "i8", base, skipped), "%sample_bytes"
            return writer.row("", self.real, base, self._first_of("%sample")), "%neurons"
        if bits and not edge:
            return named(own(name)), writer.let("", f"mul i64 %padded, {SIZE[self.real]}")
        if bits:  # the step before time 0: it matters where the state begun with gets a gradient
            wanted = writer.let("", "icmp ne i64 %wants_first, 0")
            return writer.let("", f"select i1 {wanted}, ptr %all.bits, ptr %no.bits"), "0"
        if edge and name in self.edge:
            there = writer.let("", f"icmp ne ptr {named(self.edge[name])}, null")
            given = self._given(self.edge[name], "%sample")
            return given, writer.let("", f"select i1 {there}, i64 %neurons, i64 0")
        return named(own(name)), "%padded"

    def _moving(self, name: str) -> tuple[Moving, int] | None:
        """The sequence that the row `name` is of, and how many steps from the one at hand."""
        own, _, ahead = name.rpartition(".")
        return (self.parts.moving[own], int(ahead)) if own in self.parts.moving else None

    def _at_step(self, row: Moving, t: str, ahead: int) -> str:
        writer = self.writer
        direction = "add" if self.name == "forward" else "sub"
        step = writer.let("", f"{direction} i64 {t}, {ahead}") if ahead else t
        before = writer.let("", f"mul i64 {step}, %{row.stride}")
        return writer.row("", "i8" if row.bits else self.real, f"%{row.base}", before)

    def _given(self, argument: str, sample: str) -> str:
        """A sample's row of an argument, or of zeros if that is null."""
        writer = self.writer
        there = writer.let("", f"icmp ne ptr {named(argument)}, null")
        row = writer.row("", self.real, named(argument), self._first_of(sample))
        return writer.let("", f"select i1 {there}, ptr {row}, ptr %zeros")

    def _own_row(self, name: str, s: str) -> str:
        return self.writer.row("", self.real, named(own(name)), self.writer.let("", f"mul i64 {s}, %padded"))

    def _first_of(self, sample: str) -> str:
        return self.writer.let("", f"mul i64 {sample}, %neurons")

    def _call(self, call: Call, rows: list[str]) -> None:
        if call.function in CALLS:
            count = self.writer.let("", "trunc i64 %neurons to i32")
            function = f"%{call.function}_at" if call.function in self.calls else f"@{call.function}_row"
            given = ", ".join(f"ptr {row}" for row in (*rows, rows[0]))
            self.writer.do(f"call void {function}(i32 {count}, {given}, i64 {ACCURATE})")
            return
        said = [*(f"ptr {row}" for row in rows), *(f"{self.real} %{plain(s)}" for s in call.scalars)]
        self.writer.do(f"call void {call.function}({', '.join([*said, 'i64 %neurons', 'i64 0'])})")


def _table(call: Call) -> int:
    """Which table a product reads: that of the matrix transposed, if dot products do it."""
    return call.matrix ^ 1 if len(call.rows) == 3 else call.matrix
