"""The loop nest of a CPU kernel over rows of neurons and time.

A *row* is a stretch of neurons whose state stays in the L1 cache while all T steps run over it. Where a row
is a whole number of blocks, several steps are unrolled, and state passes between them in registers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hibana.compiler.cpu.kernel_writer import Schedule, Source, own
from hibana.compiler.cpu.row_function import LINE, VECTOR
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.cpu.time_loop import AT_ONCE, Moving, Parts
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import Bytes, Pointer, Value

ROW = 4096
"""Maximum neurons in a row, a multiple of 64: its state fits in L1, and the prefetcher gets going."""

MANY = 32
"""Scratch rows from which on rows are made narrower, so that all of them fit on a thread's stack."""

PAGE = 4096
"""4K aliasing: a load waits for a store in flight whose address has the same twelve low bits."""

ROW_OFFSET = 1408
"""Offset of the kernel's first own row from what is read, within a page: see :data:`OUTPUT_OFFSET`."""

OUTPUT_OFFSET = 2816
"""Offset of what is written from what is read, within a page. Stores of up to a kilobyte are in flight at a
time. With a third of a page to the kernel's own rows, and another to what is written, no load follows a store
so closely, even where steps begin in either half of a page."""

ROW_SPACING = 448
"""Offset between the kernel's own rows, within a page."""

SIZES = ("steps", "neurons", "width", "row_bytes", "reversed")
"""Steps, neurons, neurons of a row, bytes from step to step of residuals that are bits, and how many neurons
of the last row are walked in reverse."""


class RowWalk(Schedule):
    """A kernel over rows that is being written: the loop over its rows, and over the steps of each.

    Of the current row: its number, its first neuron, how many it has, how many are walked in reverse.
    """

    row_at: Value
    lo: Value
    n: Value
    in_reverse: Value

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
        self.rows: dict[str, Pointer] = {}
        """The addresses of the current rows."""
        self.own: list[str] = []
        self.row = ROW

    def read(self, step: Step, own: Iterable[str], *arguments: Iterable[str]) -> None:
        """Reads the kernel's arguments and constants, and allocates the rows called `own`."""
        names = [name for names in arguments for name in names]
        names += [*(f"p{i}_at" for i in range(step.parameters)), "constants"]
        names += ["seed"] if step.draws else []
        bits = [row.base for row in self.moving.values() if row.bits]
        self.take(names, (*SIZES, "input_step", "grad_outputs_step", "seed"), bits)
        scratch = list(dict.fromkeys(row for pass_ in self.passes for row in pass_.scratch))
        page = PAGE // self.number.element.size
        if len(scratch) > MANY:  # a stack is small
            self.row = max(64, ROW * MANY // len(scratch) // 64 * 64)
        for name in scratch:
            self.rows[name] = self.code.array(self.number, ROW + page if self.row == ROW else self.row)
        self.own = list(own)
        self.buffers = {name: self.code.array(self.number, ROW + page) for name in [*self.own, "zeros"]}
        self.buffers["zeros"].clear(ROW)

    @contextmanager
    def each_row(self) -> Iterator[None]:
        """Loops over the rows around the code that is written inside the ``with`` statement."""
        size = self.size
        with self.code.loop(self.begin, self.end) as row:
            self.row_at = row
            self.lo = row * size["width"]
            self.n = size["width"].smaller(size["neurons"] - self.lo)
            self.in_reverse = (row + 1).equals(self.end).select(size["reversed"], 0)
            self._place_own()
            yield
        if any(pass_.nontemporal for pass_ in self.passes):
            self.code.fence()  # non-temporal stores are otherwise not ordered before others'

    def _place_own(self) -> None:
        """Offsets the kernel's own rows against 4K aliasing."""
        read = (self.at["input" if self.forwards else "grad_outputs"] + self.lo).address()
        for i, name in enumerate(self.own):
            buffer = self.buffers[name].of(Bytes)
            shift = (read - buffer.address() + (ROW_OFFSET + i * ROW_SPACING)) & (PAGE - LINE)
            self.rows[name] = (buffer + shift).of(self.number)

    def either(self, base: str, other: Pointer | None = None) -> Pointer:
        """The current row of the argument `base`, or if that is null `other`, or a row of zeros."""
        given = self.at[base]
        return (given + self.lo).replace_if(~given.is_not_null(), other or self.buffers["zeros"])

    def carried(self, name: str, base: str, first: str = "") -> None:
        """A row of state, kept in the argument `base` unless that is null; it starts as `first` or zeros."""
        begun = self.either(first) if first else self.buffers["zeros"]
        self.rows[name] = self.either(base, self.rows[own(name)]) if base else self.rows[own(name)]
        self.rows[name].copy(begun, self.n)

    def parameters(self, step: Step) -> None:
        """The current rows of the parameters."""
        for name in (f"p{i}" for i in range(step.parameters)):
            if name in self.leaves:
                self.rows[name] = self.at[f"{name}_at"] + self.lo

    def steps(self, parts: Parts, begun: Mapping[str, Pointer]) -> None:
        """All steps of a row, unrolled where it is whole; `begun` are the states before time 0."""
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
        """The step at time 0, after `several` or `one` steps."""
        assert parts.edge_step is not None
        if parts.edge_steps is not None:
            with self.code.when(wide):
                self._do(parts.edge_steps, self._step(several), begun)
        with self.code.when(~wide):
            self._do(parts.edge_step, self._step(one), begun)

    def _step(self, done: Value | int) -> Value:
        """The time of the step that runs after `done` others."""
        done = done if isinstance(done, Value) else self.code.constant(done)
        return done if self.forwards else self.size["steps"] - 1 - done

    def _do(self, pass_: Pass, t: Value, begun: Mapping[str, Pointer]) -> None:
        """The calls of `pass_` from step `t` on, with rows taken from `begun` where it has them."""
        places = dict(begun)
        for call in pass_.sequence:
            for name in call.rows:
                if name not in places:
                    places[name] = self._place(name, t)
            self.call(call, [places[name] for name in call.rows], self.n, self.in_reverse, t, self.lo)

    def _place(self, name: str, t: Value) -> Pointer:
        """The address of the row `name` at step `t`, or ``name.1`` at the step done after it."""
        own, _, ahead = name.rpartition(".")
        if own not in self.moving:
            return self.rows[name]
        row, later = self.moving[own], int(ahead)
        step = (t + later if self.forwards else t - later) if later else t
        return self.at[row.base] + (step * self.size[row.stride] + (self.lo >> 3 if row.bits else self.lo))

    def made(self) -> Source:
        return self.source(len(self.own), self.row)
