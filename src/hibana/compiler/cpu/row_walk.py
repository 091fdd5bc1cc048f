"""The loop nest of a CPU kernel over rows of neurons and time.

The loop runs over memory: a *row* is a stretch of neurons whose state stays in the first-level cache while
all T steps run over it. Where a row is a whole number of blocks, several steps are done at once, and what one
leaves to the next stays in registers. Operations that PyTorch computes by a library's vector functions are
computed by the same functions, a row at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hibana.compiler.cpu.body import LINE, VECTOR
from hibana.compiler.cpu.parts import AT_ONCE, Moving, Parts
from hibana.compiler.cpu.rows import Pass
from hibana.compiler.cpu.schedule import Schedule, Source, own
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import Bytes, Pointer, Value

__all__ = ["BUFFER_OFFSET", "FOLDED", "OUTPUT_OFFSET", "PAGE", "PATTERNS", "ROW", "SIZES", "RowWalk"]

ROW = 4096
"""Neurons in a row at most; a multiple of 64. Its state fits in a first-level cache, and a step of it is long
enough for what fetches memory ahead."""

FOLDED = 16
"""Neurons that are summed side by side where a row is folded."""

PATTERNS = 16
"""Parameters at most that may be one row for all: copies of them lie on a thread's stack."""

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

BUFFER_OFFSET = 3200
"""How far after the gradients that are read, within a page, buffers of a recomputation begin."""

ROW_SPACING = 448
"""How far after it, within a page, the next of the kernel's own rows begins."""

SIZES = ("steps", "neurons", "width", "row_bytes", "residual_step", "reversed")
"""How many steps and neurons there are, how wide a row is, how far apart are steps of what is kept, in bytes
of bits and in numbers, and how much of the last row is walked in reverse."""


class RowWalk(Schedule):
    """A kernel over rows as it is written: the rows of its range, and the steps of each."""

    row_at: Value
    """The row at hand."""
    lo: Value
    """The first neuron of the row at hand."""
    n: Value
    """How many it has."""
    in_reverse: Value
    """And how many of them are walked in reverse."""

    def __init__(
        self,
        name: str,
        number: type[Pointer],
        passes: Sequence[Pass],
        calls: frozenset[str],
        moving: Mapping[str, Moving],
        *,
        forwards: bool,
    ) -> None:
        super().__init__(name, number, passes, calls)
        self.moving = moving
        self.forwards = forwards
        """Whether later steps are done later."""
        self.rows: dict[str, Pointer] = {}
        """Where the rows at hand begin."""
        self.own: list[str] = []
        self.row = ROW
        """Neurons in a row at most."""

    def read(self, step: Step, own: Iterable[str], *arguments: Iterable[str]) -> None:
        """Reads the kernel's arguments and constants, and makes the rows called `own`."""
        names = [name for names in arguments for name in names]
        repeated = [f"p{i}_length" for i in range(step.parameters)]
        names += [*(f"p{i}_at" for i in range(step.parameters)), *repeated, "constants"]
        bits = [row.base for row in self.moving.values() if row.bits]
        reduced = [name for name in names if name.endswith("_fold")]
        self.take(names, (*SIZES, "input_step", "grad_outputs_step", *repeated, *reduced), bits)
        scratch = list(dict.fromkeys(row for pass_ in self.passes for row in pass_.scratch))
        page = PAGE // self.number.element.size
        if len(scratch) > MANY:  # a stack is small
            self.row = max(64, ROW * MANY // len(scratch) // 64 * 64)
        for name in scratch:
            self.rows[name] = self.code.array(self.number, ROW + page if self.row == ROW else self.row)
        self.patterns = {
            f"p{i}": self.code.array(self.number, ROW + page)
            for i in range(step.parameters)
            if f"p{i}" in self.leaves and step.parameters <= PATTERNS
        }
        self.own = list(own)
        self.buffers = {name: self.code.array(self.number, ROW + page) for name in [*self.own, "zeros"]}
        self.buffers["zeros"].clear(ROW)

    @contextmanager
    def each_row(self) -> Iterator[None]:
        """What is written meanwhile is done for each row."""
        size = self.size
        self._place_patterns()
        with self.code.loop(self.begin, self.end) as row:
            self.row_at = row
            self.lo = row * size["width"]
            self.n = size["width"].smaller(size["neurons"] - self.lo)
            self.in_reverse = (row + 1).equals(self.end).select(size["reversed"], 0)
            self._place_own()
            yield
        if any(pass_.nontemporal for pass_ in self.passes):
            self.code.fence()  # non-temporal stores are otherwise not ordered before others'

    def _place_patterns(self) -> None:
        """Fills a row with each parameter that is one for all, where, in a page, what is read begins."""
        read = (
            self.at["input" if self.forwards else "grad_outputs"] + self.begin * self.size["width"]
        ).address()
        for name, buffer in self.patterns.items():
            place = (buffer.of(Bytes) + ((read - buffer.address()) & (PAGE - LINE))).of(self.number)
            length, width = self.size[f"{name}_length"], self.size["width"]
            with self.code.when(length > 0):
                place.copy(self.at[f"{name}_at"], length)
                filled = self.code.variable(length)
                with self.code.repeat() as again:
                    more = filled.value.smaller(width - filled.value)
                    (place + filled.value).copy(place, more)
                    filled.value += more
                    again(filled.value < width)
            self.patterns[name] = place

    def _place_own(self) -> None:
        """Puts the kernel's own rows where no load of a block aliases a store that is still on its way."""
        read = (self.at["input" if self.forwards else "grad_outputs"] + self.lo).address()
        for i, name in enumerate(self.own):
            buffer = self.buffers[name].of(Bytes)
            shift = (read - buffer.address() + (ROW_OFFSET + i * ROW_SPACING)) & (PAGE - LINE)
            self.rows[name] = (buffer + shift).of(self.number)

    def either(self, base: str, other: Pointer | None = None) -> Pointer:
        """The row in what is at `base`, or if that is null the `other`, or a row of zeros."""
        given = self.at[base]
        return (given + self.lo).instead(~given.given(), other or self.buffers["zeros"])

    def carried(self, name: str, base: str, first: str = "") -> None:
        """A row that one step leaves to the next, kept at `base` if it is given.

        It begins as `first`, or as zeros.
        """
        begun = self.either(first) if first else self.buffers["zeros"]
        self.rows[name] = self.either(base, self.rows[own(name)]) if base else self.rows[own(name)]
        self.rows[name].copy(begun, self.n)

    def fold(self, name: str, base: str, length: str) -> None:
        """Has the row `name`, of which so many neurons come again and again, summed into one such stretch."""
        again, row = self.size[length], self.rows[name]
        there = self.at[base] + self.row_at * again
        (row + self.n).clear((again - self.n % again) % again)
        for at, present in self.code.vectors(again, FOLDED):
            total = self.code.variable(0.0, self.number.element.of(FOLDED))
            with self.code.loop(at, self.n, again) as i:
                total.value += (row + i).load(FOLDED, present)
            (there + at).store(total.value, present)

    def parameters(self, step: Step) -> None:
        """The rows of the parameters that differ from neuron to neuron: each row's own, or one for all."""
        for name in (f"p{i}" for i in range(step.parameters)):
            if name in self.leaves:
                self.rows[name] = self.at[f"{name}_at"] + self.lo
            if name in self.patterns:
                one = self.size[f"{name}_length"] > 0
                self.rows[name] = self.rows[name].instead(one, self.patterns[name])

    def steps(self, parts: Parts, begun: Mapping[str, Pointer]) -> None:
        """All steps of a row, several at once where it is whole; `begun` is read at the edge only."""
        steps = self.size["steps"]
        several = self.code.constant(0)
        if parts.steps:
            several = (self.n & (VECTOR - 1)).equals(0).select(steps // AT_ONCE, 0)
        at_once = several * AT_ONCE
        if not parts.inner:
            self._groups(parts.steps, 0, several, 0)
            self._singles(parts, at_once, steps)
            return
        wide = several > 0
        if self.forwards:
            self._edge(parts, wide, 0, 0, begun)
            self._groups(parts.steps, 1, several, 0)
            self._singles(parts, wide.select(at_once, 1), steps)
        else:
            single = wide.select(steps - at_once, steps - 1)
            self._singles(parts, 0, single)
            self._groups(parts.steps, 0, several - 1, single)
            self._edge(parts, wide, steps - AT_ONCE, steps - 1, begun)

    def _groups(self, steps: Pass | None, first: int, last: Value, done: Value | int) -> None:
        if steps is not None:
            with self.code.loop(first, last) as i:
                self._do(steps, self._step(i * AT_ONCE + done), {})

    def _singles(self, parts: Parts, first: Value | int, last: Value) -> None:
        with self.code.loop(first, last) as i:
            t = self._step(i)
            if parts.before is not None:
                self._do(parts.before, t, {})
            self._do(parts.step, t, {})

    def _edge(
        self, parts: Parts, wide: Value, several: Value | int, one: Value | int, begun: Mapping[str, Pointer]
    ) -> None:
        """The step at time 0, `several` steps or `one` being done before it."""
        assert parts.edge_step is not None
        if parts.edge_steps is not None:
            with self.code.when(wide):
                self._do(parts.edge_steps, self._step(several), begun)
        with self.code.when(~wide):
            self._do(parts.edge_step, self._step(one), begun)

    def _step(self, done: Value | int) -> Value:
        """The step that is done after so many."""
        done = done if isinstance(done, Value) else self.code.constant(done)
        return done if self.forwards else self.size["steps"] - 1 - done

    def _do(self, pass_: Pass, t: Value, begun: Mapping[str, Pointer]) -> None:
        """The calls that do `pass_` from step `t` on; rows of `begun` are where it says."""
        places = dict(begun)
        for call in pass_.does:
            for name in call.rows:
                if name not in places:
                    places[name] = self._place(name, t)
            self.call(call, [places[name] for name in call.rows], self.n, self.in_reverse)

    def _place(self, name: str, t: Value) -> Pointer:
        """Where the row `name` is at step `t`, or at one done later if it says so."""
        own, _, ahead = name.rpartition(".")
        if own not in self.moving:
            return self.rows[name]
        row, later = self.moving[own], int(ahead)
        step = (t + later if self.forwards else t - later) if later else t
        return self.at[row.base] + (step * self.size[row.stride] + (self.lo >> 3 if row.bits else self.lo))

    def made(self) -> Source:
        """The kernel and its functions, as a module."""
        return self.source(len(self.own), self.row)
