"""The loops of a CPU kernel over rows of neurons, and over the steps of each row.

A *row* is a range of neurons whose state stays in the L1 cache while all T steps run over it. If a row has
whole blocks, several steps are unrolled, and the state passes between them in registers.
"""

from hibana.compiler.cpu.kernel_writer import KernelWriter, Source
from hibana.compiler.cpu.row_function import LINE, VECTOR
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.cpu.time_loop import UNROLLED
from hibana.compiler.graph.loops import StateRow
from hibana.runtime.kernels import Bytes, Pointer, Value

ROW = 4096
"""Maximum neurons in a row, a multiple of 64: the state fits in L1, and rows are long enough to prefetch."""

MAX_FULL_ROWS = 32
"""Scratch rows above which rows become narrower, so that all of them fit on a thread's stack."""

PAGE = 4096
"""4K aliasing: a load waits for a store in flight whose address has the same twelve low bits."""

ROW_OFFSET = 1408
"""Offset of the kernel's first own row from the sequence that it reads, as :data:`OUTPUT_OFFSET`."""

OUTPUT_OFFSET = 2816
"""Offset of the sequence that a kernel writes from the one it reads, within a page.

Up to a kilobyte of stores is in flight at a time. With a third of a page between the sequence that is read,
the kernel's own rows and the sequence that is written, no load follows a store so closely, even if steps
begin in either half of a page."""

ROW_SPACING = 448
"""Offset between the kernel's own rows, within a page."""

SIZES = ("steps", "neurons", "width", "row_bytes", "reversed")
"""Steps, neurons of a step, neurons of a row, bytes of bits of a step, and the number of neurons of the last
row that run in reverse order."""


class RowLoops(KernelWriter):
    """A kernel over rows of neurons while it is written."""

    first: Value
    """The number of the current row's first neuron."""
    count: Value
    """The number of neurons of the current row."""
    in_reverse: Value
    """The number of neurons at the end of the current row that run in reverse order."""

    def source(self) -> Source:
        """Writes the kernel: for each row, the states' initial values and all steps."""
        code, loop, states = self.code, self.loop, self.loop.states
        parameters = [name for i in range(self.step.parameters) if (name := f"p{i}") in self.leaves]
        strides = [row.stride for row in loop.sequences.values() if row.stride != "step_size"]
        self.read_arguments(dict.fromkeys([*SIZES, *strides]))
        size, page = self.size, PAGE // loop.number.element.size
        size["step_size"] = size["neurons"]
        scratch = list(dict.fromkeys(row for pass_ in self.passes for row in pass_.scratch))
        width = (
            ROW if len(scratch) <= MAX_FULL_ROWS else max(64, ROW * MAX_FULL_ROWS // len(scratch) // 64 * 64)
        )
        self.rows: dict[str, Pointer] = {}
        """The addresses of the current rows by name."""
        for name in scratch:
            self.rows[name] = code.array(loop.number, ROW + page if width == ROW else width)
        buffers = {name: code.array(loop.number, ROW + page) for name in states}
        self.zeros = code.array(loop.number, ROW + page)
        self.zeros.clear(ROW)
        with code.loop(self.begin, self.end) as row:
            self.first = row * size["width"]
            self.count = size["width"].smaller(size["neurons"] - self.first)
            self.in_reverse = (row + 1).equals(self.end).select(size["reversed"], 0)
            state_rows = self._spread_over_page(buffers)
            for name, state in states.items():
                self._begin_state(name, state, state_rows[name])
            for name in parameters:
                self.rows[name] = self.addresses[f"{name}_at"] + self.first
            self.initial = {name: self._argument(name, self.zeros) for name in loop.initial.values()}
            is_full = (self.count & (VECTOR - 1)).equals(0)
            self.write_steps(is_full.select(size["steps"] // UNROLLED, 0) if loop.steps else 0)
        if loop.nontemporal:
            code.fence()  # other stores are not ordered after non-temporal ones without it
        return self.finish(len(buffers), width)

    def _spread_over_page(self, buffers: dict[str, Pointer]) -> dict[str, Pointer]:
        """The addresses of the kernel's own rows in their `buffers`, shifted to avoid 4K aliasing.

        4K aliasing: a load waits for an earlier store if the low twelve bits of their addresses are equal.
        """
        read = (self.addresses["input" if self.loop.forwards else "grad_outputs"] + self.first).address()
        rows = {}
        for i, (name, buffer) in enumerate(buffers.items()):
            address = buffer.of(Bytes)
            shift = (read - address.address() + (ROW_OFFSET + i * ROW_SPACING)) & (PAGE - LINE)
            rows[name] = (address + shift).of(self.loop.number)
        return rows

    def _argument(self, name: str, default: Pointer) -> Pointer:
        """The address of the current row in the array `name`, or `default` if the caller passed no array."""
        argument = self.addresses[name]
        return (argument + self.first).replace_if(~argument.is_not_null(), default)

    def _begin_state(self, name: str, state: StateRow, buffer: Pointer) -> None:
        """Copies the initial values of a state to where the kernel updates it.

        This is the caller's array for the last values, or `buffer` if there is no such array.
        """
        start = self._argument(state.start, self.zeros) if state.start else self.zeros
        self.rows[name] = self._argument(state.end, buffer) if state.end else buffer
        self.rows[name].copy(start, self.count)

    def run_pass(self, pass_: Pass, t: Value) -> None:
        """Writes the calls of `pass_` from step `t` on for the current row."""
        rows: dict[str, Pointer] = {}
        for call in pass_.sequence:
            for name in call.rows:
                if name not in rows:
                    rows[name] = self._row(name, t)
            self.call(call, [rows[name] for name in call.rows], self.count, self.in_reverse, t, self.first)

    def _row(self, name: str, t: Value) -> Pointer:
        """The address of the current row `name` at step `t`; ``{row}.1`` belongs to the step that follows."""
        sequence_step = self.sequence_step(name, t)
        if sequence_step is None:
            argument, _, position = name.partition(".")
            if argument not in self.initial:
                return self.rows[name]
            # another row, which is in the cache, where the values are not used
            unused = self.rows[next(iter(self.loop.states))]
            return unused.replace_if(self.is_first(t, int(position)), self.initial[argument])
        sequence, offset = sequence_step
        return self.addresses[sequence.base] + (offset + (self.first >> 3 if sequence.bits else self.first))
