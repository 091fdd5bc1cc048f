"""The walk of a CPU kernel over rows and time, in LLVM's language.

The loop runs over memory: a *row* is a stretch of neurons whose state stays in the first-level cache while
all T steps run over it. Where a row is a whole number of blocks, several steps are done at once, and what one
leaves to the next stays in registers. Operations that PyTorch computes by a library's vector functions are
computed by the same functions, a row at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hibana.loop.cpu.body import LANES, LINE, SIZE, libm_row
from hibana.loop.cpu.parts import AT_ONCE, Moving, Parts
from hibana.loop.cpu.rows import Pass, plain
from hibana.loop.graph.ops import CALLS
from hibana.loop.graph.step import Step
from hibana.native import Writer, named

__all__ = ["ACCURATE", "OUTPUT_OFFSET", "PAGE", "REAL", "ROW", "SIZES", "RowWalk", "Source", "own"]

ROW = 4096
"""Neurons in a row at most; a multiple of 64. Its state fits in a first-level cache, and a step of it is long
enough for what fetches memory ahead."""

MANY = 32
"""Rows of a pass's own from which on rows are made narrower, so that all of them lie on a thread's stack."""

PAGE = 4096
"""4K aliasing: a processor tells a load from the stores still on their way by the last twelve bits of their
addresses, those within a page, and has it wait for one that has the same."""

ROW_OFFSET = 1408
"""How far after what is read, within a page, the first row of a kernel's own begins: as
:data:`OUTPUT_OFFSET`."""

OUTPUT_OFFSET = 2816
"""How far after what is read, within a page, what is written should begin. The stores of up to a kilobyte are
on their way at a time, so what is loaded must not come so soon after what is stored. With a third of a page
from what is read to the kernel's own rows, and one more to what is written, it doesn't, even where steps
begin in either half of a page."""

ROW_SPACING = 448
"""How far after it, within a page, the next of the kernel's own rows begins."""

REAL = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Source:
    """A kernel's source, and what it declares."""

    text: str
    arguments: tuple[str, ...]
    """Their names."""
    calls: Mapping[str, str]
    """Of the arguments that are addresses of functions: the operation that each computes."""
    row: int = 0
    """Neurons in a row at most, if they are done in rows."""


class RowWalk:
    """A kernel as it is written: its arguments, the rows of its range, and the steps of each."""

    def __init__(
        self,
        name: str,
        real: str,
        passes: Sequence[Pass],
        calls: frozenset[str],
        moving: Mapping[str, Moving],
        direction: str,
    ) -> None:
        self.name = name
        self.real = real
        self.passes = passes
        self.calls = calls
        self.moving = moving
        self.direction = direction
        """``add`` if later steps are done later, else ``sub``."""
        self.nontemporal = any(pass_.nontemporal for pass_ in passes)
        self.writer = Writer()
        self.arguments: list[str] = []
        self.functions: dict[str, str] = {}
        """Arguments that are addresses of functions, and the operations that these compute."""
        self.own: list[str] = []
        self.row = ROW
        """Neurons in a row at most."""

    def begin(self, step: Step, own: Iterable[str], *arguments: Iterable[str]) -> None:
        """Reads the kernel's arguments and constants, and makes the rows called `own`."""
        called = sorted({op for pass_ in self.passes for op in pass_.called} & self.calls)
        self.functions = {f"{op}_at": op for op in called}
        self.arguments = [
            *(name for names in arguments for name in names),
            *(f"p{i}_at" for i in range(step.parameters)),
            "constants",
            *self.functions,
        ]
        writer = self.writer
        for i, name in enumerate(self.arguments):
            kind = "i64" if name in _NUMBERS else "ptr"
            writer.let(name, f"load {kind}, ptr {writer.row('', 'ptr', '%args', str(i))}")
        for name in dict.fromkeys(n for p in self.passes for call in p.does for n in call.scalars):
            array, _, index = name.rstrip("]").partition("[")
            place = writer.row("", self.real, "%constants" if array == "c" else f"%{array}_at", index)
            writer.let(plain(name), f"load {self.real}, ptr {place}")
        scratch = list(dict.fromkeys(row for pass_ in self.passes for row in pass_.scratch))
        self.own = list(own)
        page = PAGE // SIZE[self.real]
        if len(scratch) > MANY:  # a stack is small
            self.row = max(64, ROW * MANY // len(scratch) // 64 * 64)
        for name in scratch:
            length = ROW + page if self.row == ROW else self.row
            writer.let(name, f"alloca [{length} x {self.real}], align {LINE}")
        for name in [*map(_buffer, self.own), "zeros"]:
            writer.let(name, f"alloca [{ROW + page} x {self.real}], align {LINE}")
        size = ROW * SIZE[self.real]
        writer.do(f"call void @llvm.memset.p0.i64(ptr align 64 %zeros, i8 0, i64 {size}, i1 false)")

    @contextmanager
    def rows(self) -> Iterator[None]:
        """What is written meanwhile is done for each row: its first neuron is `lo`, and it has `n`."""
        writer = self.writer
        with writer.loop("row", "%begin", "%end") as row:
            writer.let("lo", f"mul i64 {row}, %width")
            writer.let("lo.octet", "lshr i64 %lo, 3")
            writer.let("rest", "sub i64 %neurons, %lo")
            writer.let("n", "call i64 @llvm.smin.i64(i64 %width, i64 %rest)")
            writer.let("n.bytes", f"mul i64 %n, {SIZE[self.real]}")
            after = writer.let("", f"add i64 {row}, 1")
            last = writer.let("", f"icmp eq i64 {after}, %end")
            writer.let("in_reverse", f"select i1 {last}, i64 %reversed, i64 0")
            self._placeown()
            yield
        if self.nontemporal:
            writer.do("fence seq_cst")  # non-temporal stores are otherwise not ordered before others'
        writer.do("ret void")

    def _placeown(self) -> None:
        """Puts the kernel's own rows where no load of a block aliases a store that is still on its way."""
        writer = self.writer
        read = writer.row("", self.real, "%input" if self.direction == "add" else "%grad_outputs", "%lo")
        at = writer.let("", f"ptrtoint ptr {read} to i64")
        for i, name in enumerate(self.own):
            buffer = writer.let("", f"ptrtoint ptr {named(_buffer(name))} to i64")
            away = writer.let("", f"sub i64 {at}, {buffer}")
            wanted = writer.let("", f"add i64 {away}, {ROW_OFFSET + i * ROW_SPACING}")
            shift = writer.let("", f"and i64 {wanted}, {PAGE - LINE}")
            writer.row(name, "i8", named(_buffer(name)), shift)

    def either(self, base: str, other: str) -> str:
        """The row in what is at `base`, or the row `other` if that is null."""
        return self.writer.let("", f"call ptr @row_or(ptr {named(base)}, i64 %lo, ptr {named(other)})")

    def carried(self, name: str, base: str, first: str = "") -> None:
        """A row that one step leaves to the next, kept at `base`; it begins as `first`, or as zeros."""
        begun = self.either(first, "zeros") if first else "%zeros"
        row = self.writer.let(name, f"call ptr @row_or(ptr {named(base)}, i64 %lo, ptr {named(own(name))})")
        self.writer.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {row}, ptr {begun}, i64 %n.bytes, i1 false)")

    def parameters(self, step: Step) -> None:
        """The rows of the parameters that differ from neuron to neuron."""
        read = {name for pass_ in self.passes for name in pass_.leaves}
        for i in range(step.parameters):
            if f"p{i}" in read:
                self.writer.row(f"p{i}", self.real, f"%p{i}_at", "%lo")

    def moved(self, row: Moving, t: str, ahead: int = 0) -> str:
        """The row of the step done `ahead` steps after `t`."""
        writer = self.writer
        step = writer.let("", f"{self.direction} i64 {t}, {ahead}") if ahead else t
        function, lo = ("bits", "%lo.octet") if row.bits else ("row", "%lo")
        return writer.let(
            "", f"call ptr @{function}(ptr %{row.base}, i64 {step}, i64 %{row.stride}, i64 {lo})"
        )

    def steps(self, parts: Parts, begun: Mapping[str, str]) -> None:
        """All steps of a row, several at once where it is whole; `begun` is read at the edge only."""
        writer = self.writer
        several = self._several() if parts.steps else "0"
        at_once = writer.let("", f"mul i64 {several}, {AT_ONCE}")
        if not parts.inner:
            self._groups(parts.steps, "0", several, "0")
            self._singles(parts, at_once, "%steps")
            return
        wide = writer.let("wide", f"icmp sgt i64 {several}, 0")
        if self.direction == "add":
            self._edge(parts, wide, "0", "0", begun)
            self._groups(parts.steps, "1", several, "0")
            self._singles(parts, writer.let("", f"select i1 {wide}, i64 {at_once}, i64 1"), "%steps")
        else:
            rest = writer.let("", f"sub i64 %steps, {at_once}")
            most = writer.let("", "sub i64 %steps, 1")
            single = writer.let("", f"select i1 {wide}, i64 {rest}, i64 {most}")
            inside = writer.let("", f"sub i64 {several}, 1")
            self._singles(parts, "0", single)
            self._groups(parts.steps, "0", inside, single)
            self._edge(parts, wide, writer.let("", f"sub i64 %steps, {AT_ONCE}"), most, begun)

    def _several(self) -> str:
        """How many times several steps are done at once in this row."""
        writer = self.writer
        left = writer.let("", f"and i64 %n, {LANES - 1}")
        whole = writer.let("", f"icmp eq i64 {left}, 0")
        times = writer.let("", f"udiv i64 %steps, {AT_ONCE}")
        return writer.let("several", f"select i1 {whole}, i64 {times}, i64 0")

    def _groups(self, steps: Pass | None, first: str, last: str, done: str) -> None:
        if steps is None:
            return
        with self.writer.loop("group", first, last) as i:
            before = self.writer.let("", f"mul i64 {i}, {AT_ONCE}")
            self.do(steps, self._step(self.writer.let("", f"add i64 {before}, {done}")), {})

    def _singles(self, parts: Parts, first: str, last: str) -> None:
        with self.writer.loop("single", first, last) as i:
            t = self._step(i)
            if parts.before is not None:
                self.do(parts.before, t, {})
            self.do(parts.step, t, {})

    def _edge(self, parts: Parts, wide: str, several: str, one: str, begun: Mapping[str, str]) -> None:
        """The step at time 0, `several` steps or `one` being done before it."""
        assert parts.edge_step is not None
        if parts.edge_steps is not None:
            with self.writer.when("edge.wide", wide):
                self.do(parts.edge_steps, self._step(several), begun)
        narrow = self.writer.let("narrow", f"xor i1 {wide}, true")
        with self.writer.when("edge.narrow", narrow):
            self.do(parts.edge_step, self._step(one), begun)

    def _step(self, done: str) -> str:
        if self.direction == "add":
            return done
        return self.writer.let("", f"sub i64 {self.writer.let('', 'sub i64 %steps, 1')}, {done}")

    def do(self, pass_: Pass, t: str, begun: Mapping[str, str]) -> None:
        """The calls that do `pass_` from step `t` on; rows of `begun` are where it says."""
        places = dict(begun)
        for call in pass_.does:
            for name in call.rows:
                own, _, ahead = name.rpartition(".")
                if name not in places:
                    moves = own in self.moving
                    places[name] = self.moved(self.moving[own], t, int(ahead)) if moves else named(name)
            given = [places[name] for name in call.rows]
            if call.function in CALLS:
                self._vector_call(call.function, given)
            else:
                said = [*(f"ptr {row}" for row in given), *(f"{self.real} %{plain(s)}" for s in call.scalars)]
                self.writer.do(
                    f"call void {call.function}({', '.join([*said, 'i64 %n', 'i64 %in_reverse'])})"
                )

    def _vector_call(self, op: str, rows: list[str]) -> None:
        count = self.writer.let("", "trunc i64 %n to i32")
        function = f"%{op}_at" if op in self.calls else f"@{op}_row"
        said = ", ".join(f"ptr {row}" for row in (*rows, rows[0]))
        self.writer.do(f"call void {function}(i32 {count}, {said}, i64 {ACCURATE})")

    def source(self) -> Source:
        """The kernel and its functions, as a module."""
        used = {op for pass_ in self.passes for op in pass_.called} - self.calls
        head = f"define void @{self.name}(i64 %begin, i64 %end, ptr %args) {{"
        parts = [
            *(function for pass_ in self.passes for function in pass_.functions),
            "\n".join([head, *self.writer.lines, "}"]),
            *(_place(name, kind) for name, kind in (("row", self.real), ("bits", "i8"))),
            _ROW_OR.format(real=self.real),
            *(libm_row(op, self.real) for op in sorted(used)),
        ]
        if self.nontemporal:
            parts.append("!0 = !{i32 1}")
        return Source("\n\n".join(parts) + "\n", tuple(self.arguments), self.functions, self.row)


def _place(name: str, kind: str) -> str:
    """A function: where the row of step `t` is in a sequence whose steps are `stride` elements apart."""
    return (
        f"define internal ptr @{name}(ptr %base, i64 %t, i64 %stride, i64 %lo) alwaysinline {{\n"
        "  %before = mul i64 %t, %stride\n"
        "  %index = add i64 %before, %lo\n"
        f"  %place = getelementptr {kind}, ptr %base, i64 %index\n"
        "  ret ptr %place\n"
        "}"
    )


_ROW_OR = """define internal ptr @row_or(ptr %base, i64 %lo, ptr %other) alwaysinline {{
  %there = icmp ne ptr %base, null
  %place = getelementptr {real}, ptr %base, i64 %lo
  %chosen = select i1 %there, ptr %place, ptr %other
  ret ptr %chosen
}}"""


def own(name: str) -> str:
    """The kernel's own row for what is called `name`."""
    return f"{name}.own"


def _buffer(name: str) -> str:
    return f"{name}.buffer"


SIZES = ("steps", "neurons", "width", "row_bytes", "residual_step", "reversed")
"""How many steps and neurons there are, how wide a row is, how far apart are steps of what is kept, in bytes
of bits and in numbers, and how much of the last row is walked in reverse."""
_NUMBERS = frozenset({*SIZES, "input_step", "grad_outputs_step"})
ACCURATE = 0x2 | 0x100 | 0x140000
"""What PyTorch asks of MKL: high accuracy, errors ignored, denormals kept."""
